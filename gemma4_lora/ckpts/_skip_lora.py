"""Restores the base model under LoRA: drop-in for `gm.ckpts.SkipLoRA`."""

import dataclasses
from typing import Any

from gemma import gm
import jax
from kauldron import kd

from gemma4_lora import _trees
from gemma4_lora import nn
from gemma4_lora.ckpts import _loaders
from gemma4_lora.ckpts.restore import _followers
from gemma4_lora.ckpts.restore import _restore
from gemma4_lora.ckpts.restore import _starts

_WHO = 'SkipLoRA4'


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkipLoRA4(kd.ckpts.InitTransform):
  """Restores the base model and leaves the LoRA leaves as they are.

  Exceptions are leaves that start from the restored base: the magnitudes of
  `use_dora`, and the copies of `modules_to_save`.

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
      `PartialLoad`'s. Any other transform, a subclass of these too, is called
      with a state that has no LoRA leaf, and must keep structure, shapes,
      dtypes and shardings.
    model: The `g4.nn.LoRA` that is trained, `cfg.ref.model` in a config. Needed
    if its `init_lora_weights=` reads the restored base, see
    `g4.nn.init_from_base`.
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
    start = _starts.Start(self.model, who=_WHO)
    before = _followers.fresh(state)
    state = self._restore(state, start)
    state = _followers.follow(state, before)
    return start.apply(state)

  def _restore(self, state: Any, start: _starts.Start) -> Any:
    """Restores the base, and reports each quantised leaf."""
    request = _loaders.request(self.wrapped)
    if request is None:
      return _apply(self.wrapped.transform, self.wrapped, state)
    request = dataclasses.replace(request, on_quantized=start.on_quantized)
    return _restore.restore(state, request)

  def transform_after_optimizer(self, state: Any) -> Any:
    if _loaders.request(self.wrapped) is not None:
      return state  # `transform` refused what belongs here.
    return _apply(self.wrapped.transform_after_optimizer, self.wrapped, state)


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
