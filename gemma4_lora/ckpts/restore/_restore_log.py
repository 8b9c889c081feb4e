"""Output of a restore: a progress bar, warnings, a log line."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import sys

from absl import logging
from tqdm import auto as tqdm

from gemma4_lora import _trees
from gemma4_lora.ckpts.restore import _policy
from gemma4_lora.ckpts.restore import _restore_plan
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.ckpts.sources import _quantized_leaves


def progress(plan: _restore_plan.Plan) -> tqdm.tqdm:
  """Returns a progress bar, shown only in a terminal or notebook."""
  return tqdm.tqdm(
      desc='Restoring',
      total=sum(_open.num_bytes(x.stored) for x in plan.loads),
      unit='B',
      unit_scale=True,
      disable=not (sys.stderr.isatty() or 'ipykernel' in sys.modules),
  )


def warn(
    plan: _restore_plan.Plan,
    *,
    kept: Sequence[_restore_plan.ModelLeaf],
    who: str,
) -> None:
  """Logs differences that the user allowed.

  Args:
    plan: What is restored.
    kept: Leaves that are ignored and have no value.
    who: The transform that asks.
  """
  for leaves, text in (
      (plan.missing, "are not in the checkpoint: the model's own values stay"),
      (kept, 'are ignored and have no value: filled with 0, scales with 1'),
      (plan.unexpected, 'of the checkpoint are not in the model: left out'),
  ):
    if leaves:
      logging.warning(
          '%s: %d leaves %s:\n%s',
          who,
          len(leaves),
          text,
          '\n'.join(map(_policy.model_leaf, leaves)),
      )


def log(
    plan: _restore_plan.Plan,
    source: _open.Source,
    made: Mapping[_trees.Path, _quantized_leaves.Quality],
    *,
    who: str,
    seconds: float,
) -> None:
  """Logs what was restored, the source, and the speed.

  Args:
    plan: What was restored.
    source: The checkpoint.
    made: The quantisation result of each weight.
    who: The transform that asked.
    seconds: Duration of the restore.
  """
  gb = sum(_open.num_bytes(x.stored) for x in plan.loads) / 1e9
  notes = [f'left out {len(v)} {k}' for k, v in plan.left_out.items()]
  if plan.pruned:
    notes.append(f'filled {len(plan.pruned)} {_restore_plan.SHARED_KV}')
  if plan.missing:
    notes.append(f'{len(plan.missing)} missing leaves')
  if plan.unexpected:
    notes.append(f'left out {len(plan.unexpected)} unexpected leaves')
  if plan.kept:
    notes.append(f'kept {len(plan.kept)} ignored leaves')
  notes += _conversions(plan.converted)
  if made:
    notes.append(_quantized_leaves.report(made))
  logging.info(
      '%s: restored %d leaves (%.3f GB, layout %s) from %s in %.1f s'
      ' (%.2f GB/s)%s',
      who,
      len(plan.loads),
      gb,
      source.layout,
      source.path,
      seconds,
      gb / max(seconds, 1e-9),
      ''.join(f'; {x}' for x in notes),
  )


def _conversions(loads: Sequence[_restore_plan.Load]) -> Iterator[str]:
  count: dict[tuple[str, str], int] = {}
  for x in loads:
    pair = (str(x.stored.dtype), str(x.model.dtype))
    count[pair] = count.get(pair, 0) + 1
  for (stored, model), n in count.items():
    yield f'converted {n} leaves from {stored} to {model}'
