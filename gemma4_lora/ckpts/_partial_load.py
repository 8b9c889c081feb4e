"""General restore of a checkpoint into a Kauldron state."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from etils import epath
import flax
from kauldron import kd

from gemma4_lora import _trees
from gemma4_lora.ckpts.restore import _followers
from gemma4_lora.ckpts.restore import _policy
from gemma4_lora.ckpts.restore import _prepare
from gemma4_lora.ckpts.restore import _restore

_OPT_STATE = 'opt_state'


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartialLoad(kd.ckpts.InitTransform):
  """Restores the base model from a checkpoint of any layout.

  ```python
  init_transform = g4.ckpts.PartialLoad(
      path=gm.ckpts.CheckpointPath.GEMMA4_E2B_IT,
      missing='warn',
  )
  ```

  Structure, shapes, dtypes and shardings of the state stay as they are, and so
  do LoRA leaves (leaves under a key `lora`), whose values are not touched.

  Three differences are allowed without an argument, and counted in the log. k,
  v and key norms of KV-shared layers, which are never read, may be absent (then
  filled) or superfluous (then left out). Towers that the model does not have
  are left out. Floats convert to floats.

  Attributes:
    path: A released Orbax checkpoint (nested, flat or stacked layout); a
      Kauldron workdir, its `checkpoints/` folder, one `ckpt_N` folder or the
      `default` item in it; or safetensors of transformers, of the multimodal
      class or of text alone: a file, an index of several, or the folder.
    missing: What to do about leaves of the model that the checkpoint lacks:
      'error', or 'warn': keep the model's own values (for a leaf without
      value, 0, or 1 for scales) and list them in a warning.
    unexpected: What to do about leaves of the checkpoint that the model does
      not have: 'error', or 'warn': leave them out and list them in a warning.
    new_to_old: Which sub-trees to restore, as `{'<path in the state>': '<path
      in the checkpoint>'}`. A released checkpoint has its tree under `params`.
      Other sub-trees of the state are not touched.
    ignore_model_keys: Globs of leaves of the model that the checkpoint may
      lack. As in `kd.ckpts.PartialKauldronLoader`, a glob is relative to the
      sub-tree (`'**.skip_scale'`), and `*` stands for a whole segment.
    ignore_restored_keys: Globs of leaves of the checkpoint not to take.
    step: Which checkpoint of a workdir; -1 for the last.
    nan: What to do about NaN and infinity in weights, and scales of quantised
      ones below 0: 'error', or 'warn': load them, and name the first leaves in a
      warning.

  Raises:
    ValueError: The checkpoint does not fit. `transform` raises it before it
      touches any array of the state.
  """

  path: epath.PathLike
  missing: _policy.Policy = 'error'
  unexpected: _policy.Policy = 'error'
  new_to_old: Mapping[str, str] = dataclasses.field(
      default_factory=lambda: flax.core.FrozenDict(
          {
              'params': 'params',
              'collections': 'collections',
          }
      )
  )
  ignore_model_keys: tuple[str, ...] = ()
  ignore_restored_keys: tuple[str, ...] = ()
  step: int = -1
  nan: _policy.Policy = 'error'

  def __post_init__(self):
    who = type(self).__name__
    _policy.check_choice(who, 'missing', self.missing)
    _policy.check_choice(who, 'unexpected', self.unexpected)
    _policy.check_choice(who, 'nan', self.nan)
    if self.step < -1:
      raise ValueError(
          f'{who}: step must be -1 (the last) or a step, got {self.step}.'
      )
    # Kauldron hashes the whole trainer, this transform included.
    freeze: dict[str, Any] = {
        'new_to_old': flax.core.FrozenDict(self.new_to_old)
    }
    for name in ('ignore_model_keys', 'ignore_restored_keys'):
      globs = getattr(self, name)
      if isinstance(globs, str):
        raise ValueError(
            f'{who}: {name} must be a tuple of globs, got the string {globs!r}.'
        )
      freeze[name] = tuple(globs)
    for name, value in freeze.items():
      object.__setattr__(self, name, value)

  def transform(self, state: Any) -> Any:
    request = self.request(type(self).__name__)
    before = _followers.fresh(state)
    state = _restore.restore(state, request)
    return _followers.follow(state, before)

  def transform_after_optimizer(self, state: Any) -> Any:
    request = self.request(type(self).__name__, opt_state=True)
    if not request.new_to_old:
      return state
    if any(map(_trees.is_lora, _trees.flatten(state))):
      raise ValueError(
          f'{request.who}: new_to_old has {_OPT_STATE!r}, and the model has LoRA'
          ' leaves, which keep their fresh values: moments of other values'
          f' would mislead the optimizer. Drop {_OPT_STATE!r} from new_to_old. To'
          ' resume a run, give its workdir to the trainer.'
      )
    return _restore.restore(state, request)

  def request(self, who: str, *, opt_state: bool = False) -> _prepare.Request:
    """Returns what to restore.

    Args:
      who: The transform that asks, for messages.
      opt_state: Whether to restore only the optimizer's state, or everything
        else.
    """
    return _prepare.Request(
        who=who,
        path=self.path,
        new_to_old={
            new: old
            for new, old in self.new_to_old.items()
            if (_trees.segments(new)[0] == _OPT_STATE) == opt_state
        },
        step=self.step,
        missing=self.missing,
        unexpected=self.unexpected,
        nan=self.nan,
        ignore_model_keys=() if opt_state else self.ignore_model_keys,
        ignore_restored_keys=() if opt_state else self.ignore_restored_keys,
        has_policy=True,
    )
