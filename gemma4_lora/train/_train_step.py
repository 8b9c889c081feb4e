"""Kauldron's train step, without work that a frozen base does not need."""

from collections.abc import Callable
from collections.abc import Mapping
import copy
import dataclasses
import functools
from typing import Any

from absl import logging
import flax
import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron.utils import config_util
import optax

from gemma4_lora import _trees
from gemma4_lora.ckpts import _checkpointer
from gemma4_lora.ckpts import _lora_checkpointer
from gemma4_lora.ckpts import _needs_logits
from gemma4_lora.ckpts import _requests
from gemma4_lora.ckpts import _workdir
from gemma4_lora.data import _ended
from gemma4_lora.host import _placement
from gemma4_lora.losses import _labels
from gemma4_lora.optim import _integers
from gemma4_lora.optim import _trained
from gemma4_lora.optim import _used_gradients as optim
from gemma4_lora.train import _lean_init
from gemma4_lora.train import _metrics_of_microbatches
from gemma4_lora.train import _microbatches
from gemma4_lora.train.checks import _bad_steps
from gemma4_lora.train.checks import _base_source
from gemma4_lora.train.checks import _empty_masks
from gemma4_lora.train.checks import _enough_rows
from gemma4_lora.train.checks import _first_batch
from gemma4_lora.train.checks import _late_checks
from gemma4_lora.train.checks import _packed_rows
from gemma4_lora.train.checks import _what_trains
from gemma4_lora.train.progress import _interval
from gemma4_lora.train.progress import _start_lines
from gemma4_lora.train.progress import _step_counts

_WHO = 'g4.train.TrainStep'


@dataclasses.dataclass(kw_only=True, eq=False, frozen=True)
class TrainStep(kd.train.TrainStep):
  """Kauldron's train step for a model whose base is restored and frozen.

  ```python
  trainer = kd.train.Trainer(
      trainstep=g4.train.TrainStep(),
      ...
  )
  ```

  The numbers are those of `kd.train.TrainStep`, bit for bit. What differs:

  * `init` draws no random weights for leaves that `init_transform=` restores:
    they are read from the file into the devices' memory. On resume nothing is
    drawn, unless a transform of the user needs it.
  * These are errors: rows of `g4.data.PackedSource` for a model that does not
    read their positions, masks that are zero for a whole batch, labels that are
    not tokens, and a loss that stays NaN. The numbers of a step are checked two
    steps later, at the run's end, and before a checkpoint is saved, so that the
    host does not wait for the device.
  * The log also has the learning rate, the norm of the gradients, tokens per
    step, the peak of memory and the time that is left.
  * One program for the step, where Kauldron compiles one for each of the
    combinations of what it logs; one for `init`, where Kauldron compiles two.

  Attributes:
    num_microbatches: Number of parts of a batch, which are taken one after the
      other to save memory. Loss and gradients are those of the whole batch, for
      any number of tokens in the parts. Replaces `optax.MultiSteps`.
    compile_once: Whether metrics and summaries are computed at each step, and
      dropped if they are not logged. Set to False if they cost much, such as
      metrics that need logits when the loss does not.
    allow_empty_masks: Whether to go on if the mask of a loss is zero for a
      whole batch.
    max_bad_steps: How many steps in a row may have a loss that is NaN or
      infinite, while the trained leaves stay finite, as under
      `optax.apply_if_finite`. With the last of them the run ends in a
      `FloatingPointError`. If a trained leaf is NaN or infinite, the run ends
      with that step. None or 0: it goes on.
    allow_random_base: Whether LoRA on a base that nothing restores is intended.
      If False, `init` warns of it.
    print_start: Whether to print what is trained, from what and on which data,
      before the first step.
    base_cfg: The trainer (set automatically).
  """

  num_microbatches: int = 1
  compile_once: bool = True
  allow_empty_masks: bool = False
  max_bad_steps: int | None = 3
  allow_random_base: bool = False
  print_start: bool = True

  _watch: _late_checks.Watch = dataclasses.field(
      default_factory=_late_checks.Watch, init=False, repr=False, compare=False
  )
  _in_a_row: _bad_steps.Counter = dataclasses.field(
      default_factory=_bad_steps.Counter, init=False, repr=False, compare=False
  )
  _since_logged: _interval.Interval = dataclasses.field(
      default_factory=_interval.Interval, init=False, repr=False, compare=False
  )
  base_cfg: kd.train.Trainer = dataclasses.field(
      default=config_util.ROOT_CFG_REF, repr=False, compare=False
  )

  def __post_init__(self):
    is_int = isinstance(self.num_microbatches, int)
    if not is_int or self.num_microbatches < 1:
      raise ValueError(
          f'{_WHO}: num_microbatches= takes a positive integer. Got:'
          f' {self.num_microbatches!r}'
      )
    num = self.max_bad_steps
    if num is not None and not (isinstance(num, int) and num >= 0):
      raise ValueError(
          f'{_WHO}: max_bad_steps= takes a positive integer, or None to go on.'
          f' Got: {num!r}'
      )

  def update_from_root_cfg(self, root_cfg: kd.train.Trainer) -> 'TrainStep':
    # Kauldron's checkpointer would fail before `init`.
    _workdir.check_modes(root_cfg.checkpointer, who=_WHO)
    # Kauldron asks it for its structure before `init`, and for batches after.
    train_ds = _ended.says_so(root_cfg.train_ds)
    object.__setattr__(root_cfg, 'train_ds', train_ds)
    return super().update_from_root_cfg(root_cfg)

  def init(
      self,
      elem_spec: Any,
      *,
      model_method: str | None = None,
      skip_transforms: bool = False,
      skip_optimizer: bool = False,
  ) -> kd.train.TrainState:
    """See `kd.train.TrainStep.init`.

    Args:
      elem_spec: Structure of the input batch.
      model_method: Name of the model's method.
      skip_transforms: Whether to leave `init_transform=` out. If the trainer's
        checkpointer has a checkpoint to restore, as on resume, leaves of
        the returned state are then shapes (`jax.ShapeDtypeStruct`).
      skip_optimizer: Whether to leave the optimizer out.

    Raises:
      FileNotFoundError: The path of `init_transform=` does not exist.
      ValueError: It does not fit the model; or rows are packed, and the model
        does not read their positions.
    """
    self._assert_root_cfg_resolved()
    self._watch.restart()
    self._in_a_row.restart()
    self._since_logged.restart()
    _packed_rows.check(self.base_cfg)
    if isinstance(elem_spec, dict):
      elem_spec = flax.core.freeze(elem_spec)
    kwargs: dict[str, Any] = dict(model_method=model_method)
    init_model = functools.partial(self._init_model, elem_spec, **kwargs)
    kwargs |= dict(
        skip_transforms=skip_transforms, skip_optimizer=skip_optimizer
    )
    if _is_traced() or skip_transforms and not self._will_resume():
      return super().init(elem_spec, **kwargs)
    _needs_logits.check(self.model, self.aux, who=_WHO)
    _enough_rows.check(self.base_cfg, num_steps=self._num_steps())
    if skip_transforms:
      return self._init_by_shapes(init_model, elem_spec, kwargs)
    with _requests.ahead(self.init_transform, self.base_cfg.model):
      return self._init_by_shapes(init_model, elem_spec, kwargs)

  def _init_by_shapes(
      self,
      init_model: Callable[[], kd.train.TrainState],
      elem_spec: Any,
      kwargs: Mapping[str, Any],
  ) -> kd.train.TrainState:
    """Returns what `init` does, if it can without drawing all at random.

    Args:
      init_model: Makes a state without an optimizer.
      elem_spec: As `init` takes it.
      kwargs: The rest of what `init` takes.
    """
    skip_optimizer = kwargs['skip_optimizer']
    traced = _lean_init.trace(init_model, self.sharding)
    shapes = traced.shapes
    _lean_init.check_storable(shapes, self.base_cfg.checkpointer)
    trained: set[_trees.Path] = set()
    if self.optimizer is not None and not skip_optimizer:
      trained = _what_trains.check(
          self._optimizer_of(shapes.params), shapes.params
      )
    if not kwargs['skip_transforms']:
      _base_source.check(
          self.init_transform,
          shapes.params,
          allow_random_base=self.allow_random_base,
      )
    if self.print_start and trained:
      _start_lines.say(
          _start_lines.of_model(
              self.base_cfg,
              shapes.params,
              trained,
              resumes=kwargs['skip_transforms'],
          )
      )
    if any(x.sharding is None for x in jax.tree.leaves(shapes.params)):
      logging.info(
          '%s: sharding= leaves it to the compiler where parameters are: they'
          ' are drawn at random, and then restored.',
          _WHO,
      )
      return super().init(elem_spec, **kwargs)
    restored: frozenset[Any] = frozenset()
    try:
      if not kwargs['skip_transforms']:
        restored = _requests.restored(self.init_transform, shapes)
      elif self._restores_by_transform():
        _requests.check_known(self.init_transform)
    except _requests.UnknownError as e:
      logging.info('%s: the base is drawn at random first: %s.', _WHO, e)
      with _base_source.explained(self.init_transform):
        return super().init(elem_spec, **kwargs)
    if kwargs['skip_transforms']:
      return self._abstract(shapes, skip_optimizer=skip_optimizer)
    self._warn(shapes.params)
    state = _lean_init.without(traced, restored)
    # Kauldron would set the shardings again, which for a moment takes the model
    # twice. Our transforms keep those that the shapes have.
    state = self.init_transform.transform(state)
    _lean_init.check_complete(state)
    if self.optimizer is not None and not skip_optimizer:
      opt_state = self._opt_state(state.params)
      state = state.replace(opt_state=opt_state)
    state = self.init_transform.transform_after_optimizer(state)
    if not skip_optimizer:
      self._remember_specs(state)
    return state

  def step(  # pyrefly: ignore[bad-override-mutable-attribute]
      self,
      state: kd.train.TrainState,
      batch: Any,
      *,
      return_losses: bool = False,
      return_metrics: bool = False,
      return_summaries: bool = False,
      checkify_error_categories: frozenset[Any] = frozenset(),
  ) -> tuple[kd.train.TrainState, kd.train.AuxiliariesState]:
    """See `kd.train.TrainStep.step`."""
    wanted = dict(
        return_losses=return_losses,
        return_metrics=return_metrics,
        return_summaries=return_summaries,
    )
    # A state of a loss is a by-product. Without metrics, or summaries, it is
    # the same program with and without.
    always = dict(
        return_losses=True,
        return_metrics=self.compile_once or not self.aux.metrics,
        return_summaries=self.compile_once or not self.aux.summaries,
    )
    if self._watch.is_first and not isinstance(state.step, jax.core.Tracer):
      with jax.transfer_guard('allow'):
        _first_batch.check(self.base_cfg, batch)
        if self.print_start:
          _start_lines.say(_start_lines.of_data(self.base_cfg, batch))
    state, aux = super().step(
        state,
        batch,
        **{name: wanted[name] or always[name] for name in wanted},
        checkify_error_categories=checkify_error_categories,
    )
    said: Any = aux.loss_states
    with jax.transfer_guard('allow'):
      step = self._look_at(said, state)
      states = dict(
          loss_states=said.loss_states if return_losses else None,
          metric_states=_metrics_of_microbatches.merge(aux.metric_states)
          if return_metrics
          else None,
          summary_states=_metrics_of_microbatches.merge(aux.summary_states)
          if return_summaries
          else None,
      )
      if not any(wanted.values()):
        return state, aux.replace(**states)
      return state, self._since_logged.aux(
          said.numbers.counts,
          trainer=self.base_cfg,
          step=step,
          last_step=self._num_steps(),
          **states,
          error=aux.error,
      )

  def _look_at(self, said: _bad_steps.Said, state: kd.train.TrainState) -> int:
    """Checks the numbers of steps, and a state that is saved.

    Args:
      said: What a step said.
      state: What it made.

    Returns:
      The step of the state.
    """
    is_kept = False

    def waits(step):
      nonlocal is_kept
      is_kept = step == self._num_steps() or self._is_saved(step)
      return is_kept

    step = self._watch.add(
        said,
        check=functools.partial(self._check_late, state),
        step=state.step,
        waits=waits,
    )
    checkpointer = self.base_cfg.checkpointer
    # Our checkpointers check themselves.
    is_ours = isinstance(checkpointer, _checkpointer.Checkpointer)
    if self.max_bad_steps and is_kept and not is_ours:
      _bad_steps.check_state(
          state, checkpointer, what=f'the state after step {step - 1}'
      )
    return step

  def _check_late(
      self, state: kd.train.TrainState, said: _bad_steps.Said, step: int
  ) -> None:
    """Raises for a step whose numbers are wrong.

    Args:
      state: The newest.
      said: What a step said.
      step: The step.
    """
    self._since_logged.add(said.numbers.counts)
    if not self.allow_empty_masks:
      _empty_masks.check(said.loss_states, step)
    where = f'{_WHO}: in step {step}'
    _labels.check(
        said.numbers.labels, num_tokens=self._num_tokens or 0, where=where
    )
    if self.max_bad_steps:
      self._in_a_row.check(
          said.numbers.is_bad,
          step,
          state=state,
          most=self.max_bad_steps,
          checkpointer=self.base_cfg.checkpointer,
      )

  def _is_saved(self, step: int) -> bool:
    """Whether the state of a step will be saved next."""
    checkpointer = self.base_cfg.checkpointer
    # Not our own method, which ends the run at a signal.
    return isinstance(
        checkpointer, kd.ckpts.Checkpointer
    ) and kd.ckpts.Checkpointer.should_save(checkpointer, step)

  def _num_steps(self) -> int | None:
    """The step of the state when the run ends."""
    cfg = self.base_cfg
    if cfg.num_train_steps is None:
      return cfg.stop_after_steps
    num = cfg.num_train_steps + 1  # Kauldron trains at step `num_train_steps`.
    return min(num, cfg.stop_after_steps or num)

  def _step(
      self, state: kd.train.TrainState, batch: Any
  ) -> tuple[kd.train.TrainState, kd.train.Context]:
    """See `kd.train.TrainStep`; takes the batch in microbatches."""
    placement = _placement.of_step(
        self.sharding, params=state.params, batch=batch
    )
    with _placement.within(placement):
      next_state, context = self._placed_step(state, batch)
    return next_state, _bad_steps.Context.of(
        context, self._numbers(context, state.params)
    )

  def _numbers(
      self, context: kd.train.Context, params: Any
  ) -> _bad_steps.Numbers:
    """Returns the numbers of a step, beside its losses."""
    labels = {}
    if self._num_tokens is not None:
      labels = _labels.num_outside(
          self.aux.losses, context, num_tokens=self._num_tokens
      )
    return _bad_steps.Numbers(
        is_bad=~jnp.isfinite(context.loss_total),
        labels=labels,
        counts=_step_counts.of_step(
            context,
            model=self.model,
            losses=self.aux.losses,
            trained=_trained.trained(self._optimizer_of(params), params),
        ),
    )

  def _optimizer_of(self, params: Any) -> optax.GradientTransformation:
    """Returns the optimizer, for parameters some of which may be integers."""
    if _integers.has_integers(params):
      return _integers.keep_integers(self.optimizer)
    return self.optimizer

  @property
  def _num_tokens(self) -> int | None:
    """The size of the model's vocabulary; None if it is unknown."""
    return _labels.num_tokens_of(self.model)

  def _placed_step(
      self, state: kd.train.TrainState, batch: Any
  ) -> tuple[kd.train.TrainState, kd.train.Context]:
    if self.num_microbatches == 1:
      step = self
      if _integers.has_integers(state.params):
        step = copy.copy(self)
        optimizer = self._optimizer_of(state.params)
        object.__setattr__(step, 'optimizer', optimizer)
      return super(TrainStep, step)._step(state, batch)
    params: Any = state.params
    old: Any = state.opt_state
    needed = optim.used_gradients(self.optimizer, params)
    if _metrics_of_microbatches.reads_gradients(self):
      needed = [True] * len(needed)
    context = kd.train.Context.from_state_and_batch(state=state, batch=batch)
    context, of_microbatches = _microbatches.run(
        self, context, num=self.num_microbatches, needed=needed
    )
    updates, opt_state = self.optimizer.update(context.grads, old, params)
    next_state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(params, updates),
        opt_state=opt_state,
        collections=context.collections,
    )
    context = context.replace(updates=updates)
    return next_state, _metrics_of_microbatches.with_metrics(
        self, context, of_microbatches
    )

  # Without unused arguments, the program would not be one of all devices.
  @functools.partial(jax.jit, static_argnames='self', keep_unused=True)
  def _opt_state(self, params: Any) -> Any:
    """Returns the optimizer's state alone: parameters stay where they are."""
    opt_state = self.optimizer.init(params)
    return kd.sharding.with_sharding_constraint(
        opt_state, self.sharding.opt_state
    )

  def _warn(self, params: Any) -> None:
    """Warns of gradients that are computed and not used."""
    if self.optimizer is not None:
      paths = optim.frozen_gradients(self.optimizer, params)
      if paths:
        logging.warning('%s: %s', _WHO, optim.explain(paths))

  def _remember_specs(self, state: kd.train.TrainState) -> None:
    """Gives the trainer its state specs, which else take a compiled `init`.

    `Trainer.state_specs` is a cached property, which the table of the context
    that Kauldron's writers show at the start asks for.

    Args:
      state: As `init` returns it.
    """
    specs = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=x.sharding, weak_type=x.aval.weak_type
        ),
        state,
    )
    vars(self.base_cfg).setdefault('state_specs', specs)

  def _will_resume(self) -> bool:
    """Whether a state without transforms is for a checkpoint to restore."""
    checkpointer = self.base_cfg.checkpointer
    is_known = isinstance(checkpointer, kd.ckpts.Checkpointer)
    return is_known and checkpointer.latest_step is not None

  def _restores_by_transform(self) -> bool:
    """Whether the checkpointer calls `init_transform=` to resume."""
    checkpointer = self.base_cfg.checkpointer
    return isinstance(checkpointer, _lora_checkpointer.LoRACheckpointer)

  def _abstract(
      self, shapes: kd.train.TrainState, *, skip_optimizer: bool
  ) -> kd.train.TrainState:
    """Returns a state to restore into: shapes, except for the step."""
    if self.optimizer is not None and not skip_optimizer:
      compiled = type(self)._opt_state.lower(self, shapes.params).compile()
      opt_state = jax.tree.map(
          lambda x, sharding: jax.ShapeDtypeStruct(
              x.shape, x.dtype, sharding=sharding
          ),
          compiled.out_info,
          compiled.output_shardings,
      )
      shapes = shapes.replace(opt_state=opt_state)
    step = jax.device_put(jnp.asarray(0), kd.sharding.REPLICATED)
    return shapes.replace(step=step)


# For `kd.inspect.lower_trainstep` and others: it is the same program.
for _name in ('lower', 'eval_shape', 'trace'):
  setattr(TrainStep.step, _name, getattr(kd.train.TrainStep.step, _name))


def _is_traced() -> bool:
  """Whether this runs under `jax.jit` or `jax.eval_shape`."""
  return isinstance(jnp.zeros(()), jax.core.Tracer)
