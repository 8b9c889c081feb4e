"""Finds the folder of the arrays for a user's path."""

from collections.abc import Collection
from concurrent import futures
import dataclasses
import difflib
import os
import re

from absl import logging
from etils import epath

from gemma4_lora import host
from gemma4_lora.host import _paths
from gemma4_lora.host.folders import _commit

# Written last by Orbax: a folder without it was not saved to its end.
METADATA = '_METADATA'
# Orbax's last file of a step in Cloud Storage, and one of the first to be
# deleted. Elsewhere, Orbax renames a step.
_COMMITTED = 'commit_success.txt'
_ITEM = 'default'
_CHECKPOINTS = 'checkpoints'
_TMP = '.orbax-checkpoint-tmp'
_STEP = re.compile(r'(?:ckpt_)?(\d+)')
_GGUF = '.gguf'
_HF_FILES = ('.safetensors', '.safetensors.index.json')
_OF_A_COPY = (
    f' If it is the whole copy of one on a disk, put a file {_COMMITTED} into it:'
    ' older versions of Orbax wrote none there.'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Located:
  """Where the arrays of one checkpoint are.

  Attributes:
    path: A folder; or a file, of Hugging Face.
    names: What the folder has; None for a file. In a bucket, each question takes as
      long as an answer does: this is asked once.
  """

  path: epath.Path
  names: Collection[str] | None

  @property
  def is_hugging_face(self) -> bool:
    return _is_hugging_face(self.path, self.names)


def locate(path: epath.PathLike, *, step: int = -1, who: str) -> Located:
  """Returns the folder of the arrays of one checkpoint.

  Args:
    path: A released checkpoint, safetensors, a Kauldron workdir, its `checkpoints/` folder,
      one `ckpt_N` folder, or the `default` item in it.
    step: Which checkpoint of a workdir; -1 for the last.
    who: The transform that asks, for messages.

  Raises:
    FileNotFoundError: There is nothing at `path`, or no checkpoint in it.
    ValueError: It is not a readable checkpoint, does not have the step, or is
      left from an interrupted write.
  """
  path = host.path(path, who=who).expanduser()
  if host.is_local(path):
    path = epath.Path(os.path.abspath(path))
  if _TMP in path.name:
    raise ValueError(
        f'{who}: {path} is half-written: Orbax gives a checkpoint its final'
        ' name when it is complete, and saving this one was interrupted. Use'
        f' an earlier step.{_siblings(path)}'
    )
  with futures.ThreadPoolExecutor(1) as pool:
    whole = pool.submit(_commit.whole, path, who=who)
    names = _names_in(path)
    if names is None and not path.exists():
      raise FileNotFoundError(
          f'{who}: no checkpoint at {path}: there is no such'
          f' path.{_siblings(path)}'
      )
    found = whole.result()
  if found != path:  # It is being replaced.
    path, names = found, _names_in(found)
  if _is_hugging_face(path, names):
    if step != -1:
      raise ValueError(
          f'{who}: step={step} chooses among the checkpoints of a Kauldron'
          f' workdir, and {path} is one of Hugging Face: drop `step=`.'
      )
    return Located(path=path, names=names)
  if any(x.endswith(_GGUF) for x in (path.name, *(names or ()))):
    raise ValueError(
        f'{who}: {path}: unknown packed format: gguf. Give the safetensors that'
        ' it was made from.'
    )
  if names is None:
    raise ValueError(f'{who}: {path} is a file; a checkpoint is a folder.')

  if METADATA in names:
    found = path
  elif _ITEM in names and (path / _ITEM / METADATA).exists():
    found = path / _ITEM
  elif _CHECKPOINTS in names and (path / _CHECKPOINTS).is_dir():
    return _listed(_step_in(path / _CHECKPOINTS, step=step, who=who))
  elif _steps(path) or path.name == _CHECKPOINTS:
    return _listed(_step_in(path, step=step, who=who))
  elif _looks_like_orbax(path):
    _check_items(path, who=who)
    raise ValueError(
        f'{who}: {path} is half-written: it has no {METADATA}, which Orbax'
        f' writes last. It holds {_listing(path)}.'
    )
  else:
    raise FileNotFoundError(
        f'{who}: no checkpoint at {path}: it holds {_listing(path)}.'
        f'{_checkpoints_below(path)}'
    )
  _check_own_step(found, step=step, who=who)
  return Located(path=path, names=names) if found == path else _listed(found)


def is_committed(step: epath.Path) -> bool:
  """Whether a step is complete: fully saved, and not partly deleted."""
  if os.fspath(step).startswith('gs://'):
    return (step / _COMMITTED).exists()
  return step.exists()


def _step_in(folder: epath.Path, *, step: int, who: str) -> epath.Path:
  """Returns the arrays of one step in a folder of many."""
  steps = _steps(folder)
  complete = {n: d for n, d in steps.items() if not _lacks(d)}
  if not complete:
    for name in sorted(steps, reverse=True):
      _check_items(steps[name], who=who)
    partial = sorted(d.name for d in folder.iterdir() if _TMP in d.name)
    partial += sorted(d.name for d in steps.values())
    if partial:
      lacks = {_lacks(d) for d in steps.values()}
      raise ValueError(
          f'{who}: all checkpoints in {folder} are half-written: {partial}.'
          + (_OF_A_COPY if lacks == {_COMMITTED} else '')
      )
    raise FileNotFoundError(
        f'{who}: no checkpoint at {folder}: it holds {_listing(folder)}.'
    )
  if step == -1:
    step = max(complete)
    if (newest := max(steps)) != step:
      logging.warning(
          '%s: takes step %d of %s, not the newest: %s has no %s, which Orbax'
          ' writes last. It was not saved to its end, or not copied to it.',
          *(who, step, folder, steps[newest], _lacks(steps[newest])),
      )
  if step in steps and step not in complete:
    lacks = _lacks(steps[step])
    raise ValueError(
        f'{who}: step={step} is half-written: {steps[step]} has no'
        f' {lacks}, which Orbax writes last. Complete steps:'
        f' {sorted(complete)}.{_OF_A_COPY if lacks == _COMMITTED else ""}'
    )
  if step not in complete:
    raise ValueError(
        f'{who}: step={step} is not in {folder}. Available steps:'
        f' {sorted(complete)}.'
    )
  return complete[step] / _ITEM


def _check_items(step: epath.Path, *, who: str) -> None:
  """Raises if a step has items with a user's names, and not ours."""
  if (step / _ITEM).exists():
    return
  named = sorted(x.name for x in step.iterdir() if (x / METADATA).exists())
  if named:
    raise ValueError(
        f'{who}: {step} has the items {named}, as an'
        ' orbax.checkpoint.CheckpointManager names them, and not'
        f' {_ITEM!r}, which Kauldron writes. Give the path of one:'
        f' {step / named[0]}.'
    )


def _lacks(step: epath.Path) -> str | None:
  """Returns the file that Orbax writes last in a step, if it is missing."""
  if not (step / _ITEM / METADATA).exists():
    return f'{_ITEM}/{METADATA}'
  return None if is_committed(step) else _COMMITTED


def _check_own_step(item: epath.Path, *, step: int, who: str) -> None:
  """Checks `step` if the path already names one checkpoint."""
  folder = item.parent if item.name == _ITEM else item
  match = _STEP.fullmatch(folder.name)
  if match and folder != item and not is_committed(folder):
    raise ValueError(
        f'{who}: {folder} is half-written: it has no {_COMMITTED}, which Orbax'
        f' writes last. Use an earlier step.{_OF_A_COPY}'
    )
  if step == -1 or (match and int(match[1]) == step):
    return
  if match:
    raise ValueError(
        f'{who}: step={step}, but the path names step {match[1]}: {folder}.'
        ' Available steps: drop `step=`, or give the workdir.'
    )
  raise ValueError(
      f'{who}: step={step} chooses among the checkpoints of a Kauldron'
      f' workdir, and {item} is one released checkpoint: drop `step=`.'
  )


def _steps(folder: epath.Path) -> dict[int, epath.Path]:
  found = {}
  for child in folder.iterdir():
    if (match := _STEP.fullmatch(child.name)) and child.is_dir():
      found[int(match[1])] = child
  return found


def _looks_like_orbax(path: epath.Path) -> bool:
  return any(
      (path / name).exists()
      for name in (
          '_CHECKPOINT_METADATA',
          'manifest.ocdbt',
          'd',
          'ocdbt.process_0',
          _ITEM,
      )
  )


def _listed(path: epath.Path) -> Located:
  return Located(path=path, names=_names_in(path))


def _names_in(path: epath.Path) -> frozenset[str] | None:
  """Returns what a folder has, None if a path is none."""
  if isinstance(path, _paths.FsspecPath):
    path.refresh()
  if not path.is_dir():
    return None
  return frozenset(x.name for x in path.iterdir())


def _is_hugging_face(path: epath.Path, names: Collection[str] | None) -> bool:
  """Whether it is safetensors, or a folder of them."""
  if names is None:
    return path.name.endswith(_HF_FILES)
  return METADATA not in names and any(x.endswith(_HF_FILES) for x in names)


def _listing(path: epath.Path, limit: int = 8) -> str:
  names = sorted(child.name for child in path.iterdir())
  more = f' and {len(names) - limit} more' if len(names) > limit else ''
  return f'{names[:limit]}{more}' if names else 'nothing'


def _checkpoints_below(path: epath.Path) -> str:
  names = sorted(
      child.name
      for child in path.iterdir()
      if child.is_dir()
      and ((child / METADATA).exists() or (child / _CHECKPOINTS).is_dir())
  )
  return (
      f' Did you mean one of the checkpoints in it: {names}?' if names else ''
  )


def _is_bucketless(path: epath.Path) -> bool:
  return os.fspath(path).endswith('://')


def _siblings(path: epath.Path) -> str:
  """Returns a hint for a missing path: what is beside it."""
  parent = path.parent
  while not _is_bucketless(parent) and not parent.exists():
    path, parent = parent, parent.parent
  if _is_bucketless(parent):
    return f' There is no bucket {path}.'
  if not parent.is_dir():
    return ''
  names = sorted(child.name for child in parent.iterdir())
  partial = [n for n in names if n.startswith(path.name) and _TMP in n]
  if partial:
    return (
        f' Beside it is {partial[0]}, which is half-written: saving was'
        ' interrupted.'
    )
  names = [n for n in names if _TMP not in n]
  if close := difflib.get_close_matches(path.name, names):
    return f' Did you mean {[str(parent / n) for n in close]}?'
  return f' {parent} holds {_listing(parent)}.'
