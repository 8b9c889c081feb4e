"""Checks that a run restores the base under LoRA, by a transform that can."""

from collections.abc import Iterator
import contextlib
from typing import Any

from absl import logging
from gemma import gm
from kauldron import kd

from gemma4_lora import _trees
from gemma4_lora.ckpts import _requests

_WHO = 'g4.train.TrainStep'
_LONGEST = 160  # The most characters shown of another library's message.
_LINE = (
    'init_transform=g4.ckpts.SkipLoRA4(wrapped=gm.ckpts.LoadCheckpoint(path='
    'gm.ckpts.CheckpointPath.GEMMA4_…))'
)


def check(transform: Any, params: Any, *, allow_random_base: bool) -> None:
  """Raises, or warns, if a run with LoRA would start from no base.

  Args:
    transform: The `init_transform=`.
    params: Parameters of the model; arrays or shapes.
    allow_random_base: Whether a random base is intended.

  Raises:
    ValueError: The transform restores a base, but not under LoRA.
  """
  if not any(map(_trees.is_lora, _trees.flatten(params))):
    return
  steps = _requests.steps(transform)
  for step in steps:
    if type(step.transform) is gm.ckpts.LoadCheckpoint and not step.in_skip:
      raise ValueError(
          f'{_WHO}: init_transform=gm.ckpts.LoadCheckpoint(…) would restore the'
          ' LoRA leaves, too, which no released checkpoint has. Wrap it in'
          f' SkipLoRA4: {_LINE}.'
      )
  if allow_random_base or not all(x.is_known for x in steps):
    return
  if all(x.request is None for x in steps):
    logging.warning(
        '%s: THE BASE MODEL IS RANDOM.\n  init_transform= restores none: LoRA'
        ' would be trained on random weights, and would not fit others.\n'
        '  Write %s.\n  If it is meant: trainstep=%s(allow_random_base=True).',
        _WHO,
        _LINE,
        _WHO,
    )


@contextlib.contextmanager
def explained(transform: Any) -> Iterator[None]:
  """Explains a failure of `gm.ckpts.SkipLoRA`: what to write instead.

  gemma 4.0.1 does not restore a Gemma 4 by it; its git HEAD does.

  Args:
    transform: The `init_transform=` that runs within.
  """
  try:
    yield
  except ValueError as e:
    if not _has_gm_skip(transform):
      raise
    # There may be hundreds of lines: the first says it all.
    first = next(iter(str(e).splitlines()), '')
    raise ValueError(
        f'{_WHO}: gm.ckpts.SkipLoRA failed: {first[:_LONGEST]} … It does not'
        ' know the layouts of Gemma 4. Write g4.ckpts.SkipLoRA4 in its place:'
        f' {_LINE}.'
    ) from None


def _has_gm_skip(transform: Any) -> bool:
  if isinstance(transform, kd.ckpts.MultiTransform):
    return any(map(_has_gm_skip, vars(transform)['_transforms'].values()))
  return isinstance(transform, gm.ckpts.SkipLoRA)
