"""Recognises files that are not what their name says."""

import os
import stat

from etils import epath

from gemma4_lora.host import _paths

# How much of a file `what_else` needs to see.
HEAD_BYTES = 512
_AGAIN = 'Download it again.'
_POINTER = (
    'it is a pointer of git-LFS, not the file itself. Run `git lfs pull` in its'
    ' folder, or download the file.'
)
_PAGE = (
    'it is a web page (HTML), not the file: perhaps one that asks to log in. '
    + _AGAIN
)
_PICKLE = (
    'it is a file of torch.save, not safetensors. Save it by'
    ' save_pretrained(safe_serialization=True).'
)
_STARTS = {
    b'version https://git-lfs': _POINTER,
    b'<!doctype': _PAGE,
    b'<html': _PAGE,
    b'pk\x03\x04': _PICKLE,
    b'\x1f\x8b': 'it is compressed by gzip. Decompress it.',
}
_KINDS = {
    stat.S_IFIFO: 'a pipe',
    stat.S_IFSOCK: 'a socket',
    stat.S_IFCHR: 'a device',
    stat.S_IFBLK: 'a device',
    stat.S_IFDIR: 'a folder',
}


def what_else(head: bytes) -> str | None:
  """Returns what a file is and what to do, if its start shows it.

  Args:
    head: The first bytes of the file, of which a file has none if it is empty.
  """
  if not head:
    return f'it is empty (0 bytes). {_AGAIN}'
  start = head.removeprefix(b'\xef\xbb\xbf').lstrip().lower()
  return next((x for k, x in _STARTS.items() if start.startswith(k)), None)


def check(path: epath.PathLike, *, who: str = '') -> None:
  """Checks that a path can be read to its end, as a pipe cannot.

  Args:
    path: A path from `host.path`. What is in a bucket is a file.
    who: What asks, for messages.

  Raises:
    FileNotFoundError: It is not there.
    ValueError: It is a pipe, a device or a folder.
  """
  if not _paths.is_local(path):
    return
  kind = stat.S_IFMT(os.stat(path).st_mode)
  if kind != stat.S_IFREG:
    what = _KINDS.get(kind, 'no file')
    raise ValueError(
        f'{_start(who)}{os.fspath(path)} is {what}, and a file must stand there.'
    )


def check_below(folder: epath.Path, *, who: str = '') -> None:
  """Checks all files in a folder and the folders in it; see `check`.

  Args:
    folder: A folder. In a bucket there is nothing to check.
    who: What asks, for messages.

  Raises:
    ValueError: There is a pipe or a device.
  """
  if not _paths.is_local(folder):
    return
  todo = [os.fspath(folder)]
  while todo:
    with os.scandir(todo.pop()) as entries:
      for entry in entries:
        if entry.is_dir(follow_symlinks=False):
          todo.append(entry.path)
        elif not entry.is_file() and not entry.is_dir() and entry.is_symlink():
          if os.path.exists(entry.path):
            check(entry.path, who=who)
        elif not entry.is_file() and not entry.is_dir():
          check(entry.path, who=who)


def read(path: epath.Path, *, who: str = '') -> bytes:
  """Returns the content of a file.

  Args:
    path: A path from `host.path`.
    who: What asks, for messages.

  Raises:
    FileNotFoundError: It is not there.
    ValueError: It is a pipe, a device or a folder.
  """
  check(path, who=who)
  return path.read_bytes()


def shown(name: object, limit: int = 120) -> str:
  """Returns a name from a file for a message: printable, and not long."""
  text = name if isinstance(name, str) and name.isprintable() else repr(name)
  return text if len(text) <= limit else f'{text[:limit]}…'


def _start(who: str) -> str:
  return f'{who}: ' if who else ''
