"""Restores the base model under LoRA: drop-in for `gm.ckpts.SkipLoRA`."""

import dataclasses
import functools
from typing import Any

from gemma import gm
import jax
from kauldron import kd

from gemma4_lora import _trees
from gemma4_lora import nn
from gemma4_lora.ckpts import _partial_load
from gemma4_lora.ckpts.restore import _base_copies
from gemma4_lora.ckpts.restore import _magnitudes
from gemma4_lora.ckpts.restore import _restore
from gemma4_lora.nn.branches import _init
from gemma4_lora.nn.from_base import _init_from_base
from gemma4_lora.nn.from_base import _loftq

_WHO = 'SkipLoRA4'

# Read for their settings. A subclass of them may do anything, and is called.
_KNOWN = (
    gm.ckpts.LoadCheckpoint,
    kd.ckpts.PartialKauldronLoader,
    kd.ckpts.SimpleCheckpointLoader,
    _partial_load.PartialLoad,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkipLoRA4(kd.ckpts.InitTransform):
  """Restores the base model and leaves the LoRA leaves as they are.

  Exceptions are leaves that start from the restored base: the magnitudes of
  `use_dora`, and what `modules_to_save` trains in full.

  ```python
  init_transform = g4.ckpts.SkipLoRA4(
      wrapped=gm.ckpts.LoadCheckpoint(
          path=gm.ckpts.CheckpointPath.GEMMA4_E2B_IT,
      ),
  )
  ```

  LoRA leaves are those under a key `lora`, as `g4.nn.LoRA` makes them and as
  gemma's git HEAD does.

  Attributes:
    wrapped: What to restore. `gm.ckpts.LoadCheckpoint`,
      `kd.ckpts.PartialKauldronLoader`, `kd.ckpts.SimpleCheckpointLoader` and
      `g4.ckpts.PartialLoad` are read for their settings, and the restore is
      `PartialLoad`'s. Any other transform is called with a state that has no
      LoRA leaf, and must keep structure, shapes, dtypes and shardings.
    model: The `g4.nn.LoRA` that is trained, `cfg.ref.model` in a config. Needed
      where its `init_lora_weights=` reads the restored base, see `g4.nn.init_from_base`.
  """

  wrapped: kd.ckpts.InitTransform
  model: nn.LoRA | None = None

  def __post_init__(self):
    if isinstance(self.wrapped, (SkipLoRA4, gm.ckpts.SkipLoRA)):
      raise ValueError(
          f'{_WHO}: wrapped is itself a {type(self.wrapped).__name__}: wrap'
          ' what is inside it.'
      )
    if self.model is not None and not isinstance(self.model, nn.LoRA):
      raise ValueError(
          f'{_WHO}: model must be the g4.nn.LoRA that is trained, got'
          f' {type(self.model).__name__}.'
      )
    if not isinstance(self.wrapped, kd.ckpts.InitTransform):
      raise ValueError(
          f'{_WHO}: wrapped must be a kd.ckpts.InitTransform, as'
          ' gm.ckpts.LoadCheckpoint(path=…), got'
          f' {type(self.wrapped).__name__}.'
      )

  def transform(self, state: Any) -> Any:
    if not any(map(_trees.is_lora, _trees.flatten(state.params))):
      raise ValueError(
          f'{_WHO}: the model has no LoRA leaf: nothing would train. The likely'
          ' cause is `gm.nn.LoRA` of gemma 4.0, which adapts no layer of Gemma'
          ' 4: use `g4.nn.LoRA(rank=…, model=…)`. To fine-tune without LoRA,'
          ' use g4.ckpts.PartialLoad(path=…) without SkipLoRA4.'
      )
    fits = None
    if self.model is not None and _init.is_loftq(self.model.init_lora_weights):
      fits = _loftq.LoftQ(self.model)
    restore = functools.partial(
        _base_copies.following, functools.partial(self._restore, fits)
    )
    # DoRA's magnitudes are those of the whole weight: first.
    state = _magnitudes.following(restore, state)
    if fits is not None:
      return dataclasses.replace(state, params=fits.set(state.params))
    if self.model is not None:
      params = nn.init_from_base(self.model, state.params)
      return dataclasses.replace(state, params=params)
    _check_no_pending(state.params)
    return state

  def _restore(self, fits: _loftq.LoftQ | None, state: Any) -> Any:
    """Restores the base, and shows what is quantised of it."""
    known = request(self.wrapped)
    if known is None:
      return _apply(self.wrapped.transform, self.wrapped, state)
    if fits is not None:
      known = dataclasses.replace(
          known,
          on_quantized=lambda path, *args: fits.add(_trees.join(path), *args),
      )
    return _restore.restore(state, known)

  def transform_after_optimizer(self, state: Any) -> Any:
    if request(self.wrapped) is not None:
      return state  # `transform` refused what belongs here.
    return _apply(self.wrapped.transform_after_optimizer, self.wrapped, state)


def request(wrapped: kd.ckpts.InitTransform) -> _restore.Request | None:
  """Returns what a known transform would restore; `None` for any other.

  Args:
    wrapped: The transform.

  Raises:
    ValueError: It would restore what cannot be restored under LoRA.
  """
  who = f'{_WHO}({type(wrapped).__name__})'
  if type(wrapped) not in _KNOWN:
    return None
  if isinstance(wrapped, gm.ckpts.LoadCheckpoint):
    if wrapped.quantize:
      raise ValueError(
          f'{who}: quantize=True is not supported: it renames the leaves of'
          ' the base model. Drop it.'
      )
    return _restore.Request(
        who=who, path=wrapped.path, new_to_old={'params': 'params'}
    )
  if isinstance(wrapped, kd.ckpts.PartialKauldronLoader):
    load = _partial_load.PartialLoad(
        path=wrapped.workdir,
        new_to_old=wrapped.new_to_old,
        ignore_model_keys=wrapped.ignore_model_keys,
        ignore_restored_keys=wrapped.ignore_restored_keys,
        step=wrapped.step,
    )
  elif isinstance(wrapped, kd.ckpts.SimpleCheckpointLoader):
    if wrapped.load_opt_state:
      raise _opt_state_error(who, 'load_opt_state=True')
    # That loader passes over leaves that the state does not have.
    load = _partial_load.PartialLoad(
        path=wrapped.workdir, step=wrapped.step, unexpected='warn'
    )
  else:
    assert isinstance(wrapped, _partial_load.PartialLoad)
    load = wrapped
  if load.request(who, opt_state=True).new_to_old:
    raise _opt_state_error(who, "new_to_old={'opt_state': …}")
  return dataclasses.replace(load.request(who), has_policy=load is wrapped)


def _check_no_pending(params: Any) -> None:
  """Raises where A and B wait for the base, and nothing sets them."""
  # One is enough: `init_lora_weights=` holds for all of them.
  leaves = _trees.flatten(params).items()
  path = next(
      (p for p, _ in leaves if _trees.is_lora(p) and p[-1] == 'a'), None
  )
  if path is not None and _init_from_base.is_pending(
      _trees.get_at(params, path)
  ):
    raise ValueError(
        f'{_WHO}: {_trees.join(path)} is NaN: it waits for the base weights, as'
        " g4.nn.LoRA(init_lora_weights='pissa'), 'olora' and 'loftq' take A and"
        f' B from them. Write {_WHO}(wrapped=…, model=cfg.ref.model).'
    )


def _opt_state_error(who: str, arg: str) -> ValueError:
  return ValueError(
      f'{who}: {arg} is not supported under LoRA: LoRA leaves keep their fresh'
      ' values, and moments of other values would mislead the optimizer. Drop'
      ' it. To resume a run, give its workdir to the trainer.'
  )


def _apply(method: Any, wrapped: kd.ckpts.InitTransform, state: Any) -> Any:
  """Calls a transform with a state that has no LoRA leaf."""
  before = _specs(state)
  base, lora = _trees.split_lora(state.params)
  out = method(dataclasses.replace(state, params=base))
  out = dataclasses.replace(out, params=_trees.merge(out.params, lora))
  after = _specs(out)
  if jax.tree.structure(out) != jax.tree.structure(state) or after != before:
    names = sorted(
        k for k in {*before, *after} if before.get(k) != after.get(k)
    )
    shown = '\n'.join(
        f'  {k}: before {before.get(k, "absent")}, after {after.get(k, "absent")}'
        for k in names[:8]
    )
    raise ValueError(
        f'{_WHO}: wrapped={type(wrapped).__name__} changed structure, shape,'
        f' dtype or sharding of {len(names)} leaves of the state:\n{shown}'
    )
  return out


def _specs(state: Any) -> dict[str, Any]:
  def spec(x):
    return (
        tuple(getattr(x, 'shape', ())),
        str(getattr(x, 'dtype', type(x).__name__)),
        getattr(x, 'sharding', None),
    )

  return {_trees.join(k): spec(v) for k, v in _trees.flatten(state).items()}
