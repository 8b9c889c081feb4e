"""Evaluators that also evaluate the model with LoRA off, on the same state."""

import dataclasses
import functools
import typing
from typing import Any

from etils import epy
from gemma import gm
import jax
from kauldron import kd

from gemma4_lora import _trees
from gemma4_lora import nn
from gemma4_lora.evals import _image_sampler
from gemma4_lora.host import _checksums
from gemma4_lora.losses import _labels
from gemma4_lora.losses import _uncounted

_SUFFIX = '_base'


class _WithBase(kd.evals.EvaluatorBase):
  """Mixin for an evaluator, which then writes two collections.

  Attributes:
    with_base: Whether to evaluate the model with LoRA off, too.
  """

  with_base: bool = True

  if typing.TYPE_CHECKING:  # Fields of the evaluator class.
    ds_iter: Any
    model: Any
    losses: Any
    metrics: Any

  def update_from_root_cfg(self, root_cfg: kd.train.Trainer) -> Any:
    """Fills missing fields from the Trainer.

    Args:
      root_cfg: The Trainer.

    Raises:
      ValueError: The model has no LoRA, or LoRA that cannot be off; or another
        evaluator has the name of the second collection.
    """
    new = super().update_from_root_cfg(root_cfg)
    if new.with_base:
      new._check(root_cfg)  # pylint: disable=protected-access
    return new

  def evaluate(self, state: kd.train.TrainState, step: int) -> Any:
    """Evaluates with LoRA on, then off; returns the result with LoRA on.

    Args:
      state: State of the training.
      step: Its step.

    Raises:
      ValueError: A loss had no token to count, or counted one that is none.
    """
    self._outside.clear()
    aux = super().evaluate(state, step)
    for found in self._outside:
      _labels.check(
          found,
          num_tokens=_labels.num_tokens_of(self.model) or 0,
          where=self._who,
          losses='losses',
      )
    for name in _uncounted.uncounted(getattr(aux, 'loss_states', None)):
      raise ValueError(
          f'{self._who}: the mask of losses.{name} was zero for all rows: it is'
          ' a mean of nothing. Look at what writes the mask of ds='
          ' (g4.data.show).'
      )
    if self.with_base:
      self._base.evaluate(state, step)
    return aux

  @functools.cached_property
  def _outside(self) -> list[dict[str, jax.Array]]:
    """How many labels of each batch are no token, by the name of the loss."""
    return []

  @functools.cached_property
  def _base(self) -> '_Base':
    writer = _Recorder(
        dataclasses.replace(self.writer, collection=self._base_name)
    )
    evaluator = dataclasses.replace(
        self,
        name=self._base_name,
        with_base=False,
        model=self.model.clone(enabled=False),
        writer=writer,
    )
    # The same batches, so that a stop signal ends these, too.
    vars(evaluator)['ds_iter'] = self.ds_iter
    return _Base(evaluator, writer)

  @property
  def _base_name(self) -> str:
    return self.name + _SUFFIX

  @functools.cached_property
  def __dashboards__(self) -> kd.kdash.DashboardsBase:
    """Both collections, in the same plots."""
    names = [self.name, self._base_name] if self.with_base else [self.name]
    return kd.kdash.MultiDashboards.from_iterable(
        kd.kdash.MetricDashboards(
            collection=name, losses=self.losses, metrics=self.metrics
        )
        for name in names
    )

  @property
  def _who(self) -> str:
    return f'g4.evals.{type(self).__name__} {self.name!r}'

  def _check(self, root_cfg: kd.train.Trainer) -> None:
    who = self._who
    if not isinstance(self.model, nn.LoRA):
      raise ValueError(
          f'{who} evaluates its model with LoRA off, too, and model= is a'
          f' {type(self.model).__name__}, not a g4.nn.LoRA. Set'
          ' with_base=False.'
      )
    if self._base_name in (root_cfg.evals or {}):
      raise ValueError(
          f'{who} writes what the model does with LoRA off to'
          f' {self._base_name!r}, and evals= has an evaluator of that name.'
          ' Rename one, or set with_base=False.'
      )
    try:
      self.model.clone(enabled=False)
    except ValueError as e:
      epy.reraise(e, prefix=f'{who}: ', suffix=' Or set with_base=False.')


class Evaluator(_WithBase, kd.evals.Evaluator):
  """`kd.evals.Evaluator`, of the model with LoRA on and off, side by side.

  ```python
  evals={
      "eval": g4.evals.Evaluator(run=kd.evals.EveryNSteps(n=1000), ds=...),
  },
  ```

  writes the losses and metrics of the model to the collection `eval`, and those
  of the same weights with LoRA off to `eval_base`: two curves in one chart of
  TensorBoard. There is no second copy of the base.

  The base is evaluated once, and again if its weights changed. Otherwise the
  same numbers are written again, so that its curve continues.

  Attributes:
    with_base: Whether to evaluate the model with LoRA off, too.
  """

  # Kauldron's is compiled, and so has no place for what it does not return.
  def step(  # pyrefly: ignore[bad-override]
      self, *, step_nr: Any, state: kd.train.TrainState, batch: Any
  ) -> kd.train.AuxiliariesState:
    """See `kd.evals.Evaluator.step`; looks at the labels, too."""
    found = self._num_outside(batch)
    if found:
      self._outside.append(found)
    return super().step(step_nr=step_nr, state=state, batch=batch)

  @functools.partial(jax.jit, static_argnames='self')
  def _num_outside(self, batch: Any) -> dict[str, jax.Array]:
    num_tokens = _labels.num_tokens_of(self.model)
    if num_tokens is None:
      return {}
    return _labels.num_outside(
        self.losses,
        kd.train.Context(step=0, batch=batch),
        num_tokens=num_tokens,
    )


class SamplerEvaluator(_WithBase, gm.evals.SamplerEvaluator):
  """`gm.evals.SamplerEvaluator`, of the model with LoRA on and off.

  ```python
  evals={
      "sampling": g4.evals.SamplerEvaluator(
          run=kd.evals.EveryNSteps(n=1000),
          ds=...,
          max_new_tokens=150,
          metrics={"bleu": g4.evals.Bleu()},
      ),
  },
  ```

  writes texts and metrics to `sampling`, and those of the same weights with LoRA
  off to `sampling_base`. As `g4.evals.Evaluator`, it samples from the base once;
  texts are written then, metrics at each evaluation.

  With `g4.data.ChatTask(sampling=True, in_images=...)` the model sees the
  images of the prompts. Rows with other images, or without images, compile
  nothing new.

  Attributes:
    with_base: Whether to sample with LoRA off, too.
  """

  def update_from_root_cfg(self, root_cfg: kd.train.Trainer) -> Any:
    """Fills missing fields from the Trainer.

    Args:
      root_cfg: The Trainer.

    Raises:
      ValueError: As for `Evaluator`; or the model cannot see the dataset's
        images.
    """
    new = super().update_from_root_cfg(root_cfg)
    if new._has_images:  # pylint: disable=protected-access
      _check_sees(new.model, who=new._who)  # pylint: disable=protected-access
    return new

  def _get_sampler(self, state: kd.train.TrainState) -> gm.text.Sampler:
    sampler = super()._get_sampler(state)
    return (
        _image_sampler.ImageSampler.of(sampler) if self._has_images else sampler
    )

  def _get_prompt_and_image_from_batch(self, ex: Any) -> tuple[Any, Any]:
    prompt = kd.kontext.get_by_path(ex, self._task.out_input)
    if not self._has_images:  # gemma asks for them if the model has a key.
      return prompt, None
    task: Any = self._task
    images = kd.kontext.get_by_path(ex, task.out_images)
    return prompt, _image_sampler.images_of(images)

  @property
  def _has_images(self) -> bool:
    return getattr(self._task, 'in_images', None) is not None


def _check_sees(model: Any, *, who: str) -> None:
  if not isinstance(model, nn.LoRA | nn.RouterFix):
    raise ValueError(
        f'{who} samples from images through g4.nn.LoRA or g4.nn.RouterFix, and'
        f' its model= is a {type(model).__name__}. Wrap it in one of them.'
    )
  if model.images is None:
    raise ValueError(
        f'{who}: the dataset has images (in_images=), and the model reads none.'
        ' Write it with text_only=False and images="batch.images", or drop'
        ' in_images=.'
    )


class _Recorder:
  """A writer that also keeps the metrics that it writes."""

  def __init__(self, writer: kd.train.metric_writer.WriterBase):
    self.writer = writer
    self.calls: list[dict[str, Any]] = []

  def write_step_metrics(self, **kwargs: Any) -> None:
    self.calls.append(kwargs)
    self.writer.write_step_metrics(**kwargs)

  def __getattr__(self, name: str) -> Any:
    if name == 'writer':  # Missing while it is copied.
      raise AttributeError(name)
    return getattr(self.writer, name)


class _Base:
  """Evaluates with LoRA off: once, while the base does not change."""

  def __init__(self, evaluator: kd.evals.EvaluatorBase, writer: _Recorder):
    self._evaluator, self._recorder = evaluator, writer
    self._checksums: dict[str, str] | None = None

  def evaluate(self, state: kd.train.TrainState, step: int) -> None:
    # In a train loop, transfers must be explicit.
    with jax.transfer_guard('allow'):
      checksums = _checksums.checksums(
          {
              _trees.join(path): leaf
              for path, leaf in _trees.flatten(state.params).items()
              if not _trees.is_lora(path)
          }
      )
    if checksums == self._checksums:
      for call in self._recorder.calls:
        again = call | {'step': step, 'log_summaries': False}
        self._recorder.writer.write_step_metrics(**again)
      return
    self._checksums = None  # If this fails.
    self._recorder.calls.clear()
    self._evaluator.evaluate(state, step)
    self._checksums = checksums
