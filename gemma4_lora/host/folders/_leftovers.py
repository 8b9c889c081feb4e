"""Temporary folders, and their leftovers after `kill -9`.

`.NAME.<hex>.tmp/` holds `new/`, which is renamed to NAME when it is complete, and
`writer.json`, by which others see whether a process still writes it.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import re
import shutil
import time

from absl import logging

from gemma4_lora.host.folders import _owner

# Prefix of uploads in the folder for temporary files.
STAGE = 'gemma4_lora_upload'
# Where the old folder is while the new one takes its name.
ASIDE = 'old'
_NEW = 'new'
_WRITER = 'writer.json'
_TMP = re.compile(r'\.(?P<name>.+)\.[0-9a-f]{8}\.tmp')
# Folders of earlier versions do not name their writer.
_UNKNOWN_S = 3600.0
# A writer says who it is right after it has made its folder, and takes that back
# right before it removes it. Who finds an empty one waits for that.
_EMPTY_S = 2.0


@contextlib.contextmanager
def workplace(parent: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
  """Makes an empty folder, and removes what is there at the end.

  Args:
    parent: Where.
    name: Name of what is made, for whoever finds the leftover.
  """
  writer = _owner.make()
  place = parent / f'.{name}.{writer["token"]}.tmp'
  place.mkdir()
  file = place / _WRITER
  with _owner.at_work(writer, lambda _: os.utime(file)):
    try:
      file.write_text(json.dumps(writer))
      (place / _NEW).mkdir()
      yield place / _NEW
    finally:
      _remove(place)


def remove(path: pathlib.Path) -> None:
  """Removes leftovers of dead writers beside a path.

  Leftovers that cannot be removed, as on a read-only disk, stay.

  Args:
    path: What is to be written. It need not exist.
  """
  try:
    found = [x for x in path.parent.iterdir() if _TMP.fullmatch(x.name)]
  except OSError:
    return
  for place in found:
    match = _TMP.fullmatch(place.name)
    assert match is not None
    try:
      if _is_dead(place, is_same=match['name'] == path.name):
        logging.info('Removes what an interrupted write left: %s', place)
        old, name = place / ASIDE, path.with_name(match['name'])
        if old.exists() and not name.exists():  # Between two renames.
          os.rename(old, name)
        _remove(place)
    except OSError:
      continue


def _is_dead(place: pathlib.Path, *, is_same: bool) -> bool:
  """Whether no process writes a folder.

  Args:
    place: The folder.
    is_same: Whether it is for the name that is to be written: otherwise it may
      be of another program, if it does not say who writes it.
  """
  file = place / _WRITER
  end = time.monotonic() + _EMPTY_S
  while True:
    try:
      writer = json.loads(file.read_text())
      return isinstance(writer, dict) and not _owner.is_alive(
          writer, _silent_s(file)
      )
    except (OSError, ValueError):
      pass
    if not is_same or not place.is_dir():
      return False
    if any(x != file for x in place.iterdir()):
      last = max(x.stat().st_mtime for x in (place, *place.rglob('*')))
      return time.time() - last > _UNKNOWN_S
    if time.monotonic() > end:
      return True
    time.sleep(0.1)


def _silent_s(file: pathlib.Path) -> float:
  """Returns how long ago a file was written, by the clock of its disk."""
  probe = file.with_name(f'now.{os.getpid()}')
  probe.touch()
  now = probe.stat().st_mtime
  probe.unlink()
  return now - file.stat().st_mtime


def _remove(folder: pathlib.Path) -> None:
  """Removes a folder that threads may still write to, after an error.

  On a busy machine, those of Orbax took more than two seconds to end.
  """
  for _ in range(100):
    # Who writes it last: killed in between, the rest is still known as left.
    for name in (_NEW, ASIDE, ''):
      shutil.rmtree(folder / name, ignore_errors=True)
    if not folder.exists():
      return
    time.sleep(0.1)
