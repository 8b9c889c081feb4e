"""Finds the files of a path, of a list, or of patterns."""

from collections.abc import Sequence
import glob
import os

from etils import epath

from gemma4_lora import host
from gemma4_lora.host import _storage_errors

_MAGIC = '*?['

Paths = epath.PathLike | Sequence[epath.PathLike]


def expand(given: Paths, *, who: str) -> list[epath.Path]:
  """Returns the files that paths and patterns name.

  Args:
    given: A path, a pattern as `'rows-*.jsonl'`, or a list of them. The files of
      a pattern are in the order of their names. On a disk `**` is any number of
      folders.
    who: What asks, for messages.

  Raises:
    ValueError: A file is named twice, a path is a folder, or the list is empty.
    FileNotFoundError: There is no such file.
  """
  patterns = [given] if isinstance(given, (str, os.PathLike)) else list(given)
  if not patterns:
    raise ValueError(f'{who}: path= is an empty list. Give at least one file.')
  paths = [path for x in patterns for path in _matches(x, who=who)]
  seen = set()
  for path in paths:
    if path in seen:
      raise ValueError(
          f'{who}: {os.fspath(path)} is named twice in path={given!r:.300}. To'
          ' train on some rows more often, mix datasets: kd.data.py.Mix('
          'weights=...).'
      )
    seen.add(path)
  return paths


def _matches(given: epath.PathLike, *, who: str) -> list[epath.Path]:
  path = host.path(given, who=who).expanduser()
  with _storage_errors.explained(path, who=who):
    return _matches_of(path, who=who)


def _matches_of(path: epath.Path, *, who: str) -> list[epath.Path]:
  text = os.fspath(path)
  if path.exists():  # A file may be called `a[1].jsonl`.
    if path.is_dir():
      raise ValueError(
          f'{who}: {text} is a folder. Name its files: {text}/*.jsonl'
      )
    return [path]
  if not any(x in text for x in _MAGIC):
    raise FileNotFoundError(f'{who}: there is no file {text}.')
  if host.is_local(path):
    found = [epath.Path(x) for x in glob.iglob(text, recursive=True)]
  elif '**' in text:
    raise ValueError(f'{who}: {text}: in a bucket, ** is not a pattern. Use *.')
  else:
    found = list(_folder(path).glob(_pattern(path)))
  found = sorted(x for x in found if not x.is_dir())
  if not found:
    raise FileNotFoundError(f'{who}: no file matches {text}.')
  return found


def _folder(path: epath.Path) -> epath.Path:
  """Returns the part of a pattern before its first wildcard."""
  while any(x in os.fspath(path) for x in _MAGIC):
    path = path.parent
  return path


def _pattern(path: epath.Path) -> str:
  return os.fspath(path)[len(os.fspath(_folder(path))) :].lstrip('/')
