"""Loaders of a base that are read for their settings, not called.

They are recognised by their exact type: a subclass may do anything, so it is
called.
"""

import dataclasses

from gemma import gm
from kauldron import kd

from gemma4_lora.ckpts import _partial_load
from gemma4_lora.ckpts.restore import _prepare

_WHO = 'SkipLoRA4'

_KNOWN = (
    gm.ckpts.LoadCheckpoint,
    kd.ckpts.PartialKauldronLoader,
    kd.ckpts.SimpleCheckpointLoader,
    _partial_load.PartialLoad,
)


def is_known(loader: kd.ckpts.InitTransform) -> bool:
  """Whether a transform is such a loader."""
  return type(loader) in _KNOWN


def request(loader: kd.ckpts.InitTransform) -> _prepare.Request | None:
  """Returns what a known loader would restore; `None` for any other transform.

  Args:
    loader: The transform, as in `SkipLoRA4(wrapped=…)`.

  Raises:
    ValueError: It would restore what cannot be restored under LoRA.
  """
  who = f'{_WHO}({type(loader).__name__})'
  if not is_known(loader):
    return None
  if isinstance(loader, gm.ckpts.LoadCheckpoint):
    if loader.quantize:
      raise ValueError(
          f'{who}: quantize=True is not supported: it renames the leaves of'
          ' the base model. Drop it.'
      )
    return _prepare.Request(
        who=who, path=loader.path, new_to_old={'params': 'params'}
    )
  load = _as_partial_load(loader, who=who)
  if load.request(who, opt_state=True).new_to_old:
    raise _opt_state_error(who, "new_to_old={'opt_state': …}")
  return dataclasses.replace(load.request(who), has_policy=load is loader)


def _as_partial_load(
    loader: kd.ckpts.InitTransform, *, who: str
) -> _partial_load.PartialLoad:
  """Returns a loader of Kauldron or ours as ours."""
  if isinstance(loader, kd.ckpts.PartialKauldronLoader):
    return _partial_load.PartialLoad(
        path=loader.workdir,
        new_to_old=loader.new_to_old,
        ignore_model_keys=loader.ignore_model_keys,
        ignore_restored_keys=loader.ignore_restored_keys,
        step=loader.step,
    )
  if isinstance(loader, kd.ckpts.SimpleCheckpointLoader):
    if loader.load_opt_state:
      raise _opt_state_error(who, 'load_opt_state=True')
    # That loader skips leaves that the state does not have.
    return _partial_load.PartialLoad(
        path=loader.workdir, step=loader.step, unexpected='warn'
    )
  assert isinstance(loader, _partial_load.PartialLoad)
  return loader


def _opt_state_error(who: str, arg: str) -> ValueError:
  return ValueError(
      f'{who}: {arg} is not supported under LoRA: LoRA leaves keep their fresh'
      ' values, and moments of other values would mislead the optimizer. Drop'
      ' it. To resume a run, give its workdir to the trainer.'
  )
