"""Log lines of a resumed run: its step, its base, and changes of the config."""

from collections.abc import Iterator
import json
import os
import time
from typing import Any

from etils import epath
from kauldron import kd

from gemma4_lora.ckpts import _requests

_CONFIG = 'config.json'  # Kauldron writes it when a run starts.
_METADATA = '_CHECKPOINT_METADATA'  # Of Orbax, in the folder of each step.
_SHOWN = 8
_LONGEST = 60  # The most characters of a value.


def text(trainer: Any, folder: epath.Path, *, step: int, has_base: bool) -> str:
  """Returns the lines for a resumed run.

  Args:
    trainer: The trainer.
    folder: The folder of the step.
    step: The step that it resumes from.
    has_base: Whether the base was in the folder, too.
  """
  workdir = folder.parent.parent
  saved = _saved_at(folder)
  lines = f'goes on from step {step} of {workdir}'
  if saved:
    lines += f' (saved {saved})'
  if not isinstance(trainer, kd.train.Trainer):
    return f'{lines}.'
  base = str(folder) if has_base else base_of(trainer.init_transform)
  lines += f'; base: {base}.'
  changed = _changed(workdir / _CONFIG, trainer.raw_cfg)
  if changed:
    shown = changed[:_SHOWN]
    more = len(changed) - len(shown)
    shown += [f'… and {more} more'] if more else []
    lines += ' Changed in the config since the start:'
    lines += ''.join(f'\n  {x}' for x in shown)
  return lines


def base_of(init_transform: Any) -> str:
  """Returns the source of the base, for people."""
  if _requests.unknown(init_transform):
    return type(init_transform).__name__
  try:
    request = _requests.base_request(init_transform)
  except ValueError:  # Several: the restore raises for them.
    return type(init_transform).__name__
  # The path of a `g4.testing.RandomCheckpoint`, not its repr.
  return str(os.fspath(request.path)) if request else 'none'


def differences(old: Any, new: Any, path: str = '') -> Iterator[str]:
  """Yields the differences between two configs as JSON.

  ```
  schedules.lr.value: 0.001 → 0.0003
  evals: none → {…}
  ```
  """
  if old == new:
    return
  if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
    old, new = dict(enumerate(old)), dict(enumerate(new))
  if isinstance(old, dict) and isinstance(new, dict):
    for key in [*old, *(x for x in new if x not in old)]:
      below = f'{path}.{key}' if path else str(key)
      yield from differences(old.get(key), new.get(key), below)
    return
  yield f'{path}: {_short(old)} → {_short(new)}'


def _changed(path: epath.Path, config: Any) -> list[str]:
  if config is None:  # The trainer was made without one.
    return []
  try:
    if not path.exists():  # Its writer writes none.
      return []
    return list(
        differences(json.loads(path.read_text()), json.loads(config.to_json()))
    )
  except Exception as e:  # pylint: disable=broad-exception-caught
    return [f'{path} cannot be read: {e}']  # Not a reason to stop.


def _short(value: Any) -> str:
  if value is None:
    return 'none'
  if isinstance(value, dict) and value.get('__qualname__'):
    return f'{value["__qualname__"]}(…)'
  shown = json.dumps(value)
  return shown if len(shown) <= _LONGEST else f'{shown[:_LONGEST]}…'


def _saved_at(folder: epath.Path) -> str | None:
  try:
    metadata = json.loads((folder / _METADATA).read_text())
    seconds = metadata['commit_timestamp_nsecs'] / 1e9
    return time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(seconds))
  except Exception:  # pylint: disable=broad-exception-caught
    return None  # Another version of Orbax.
