"""The file that tells whether a folder in a bucket is complete.

A bucket has no rename that would let a folder appear at once, so `COMMIT` in it
says what a reader may count on:

| `state` | the folder |
|---|---|
| `writing` | is being written, or its writer died: not to be read |
| `moving` | is being replaced: the new one is whole in `source` beside it |
| `complete` | holds `files`, of these sizes and checksums |

It is written first, as `writing`, and last, as `complete`: an object appears whole
or not at all. So the file itself marks an interrupted write. A folder without
the file, from an earlier version or from PEFT, is read unchecked. PEFT and vLLM
do not know the file: they find plain files under their usual names, those
without which they read nothing (`*.json`) written last.

On a local disk a folder appears by a rename and has no such file; one that was
copied from a bucket is checked all the same.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
import dataclasses
import json
import time
from typing import Any
from typing import Literal
import zlib

from etils import epath

from gemma4_lora.host import _paths
from gemma4_lora.host import _storage_errors
from gemma4_lora.host.files import _json_objects
from gemma4_lora.host.files import _regular
from gemma4_lora.host.folders import _owner

COMMIT = 'gemma4_lora_commit.json'
_FORMAT = 1
_STATES = ('writing', 'moving', 'complete')
# How often a folder is read again that was replaced meanwhile, and after how
# long: TensorFlow remembers sizes of files for 5 s.
_TRIES = 3
_PAUSE_S = 5.5
_PIECE_BYTES = 2**20
THREADS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Commit:
  """The content of the file.

  Attributes:
    state: See above.
    writer: Who wrote it, from `_owner.make`.
    files: Size in bytes and CRC-32 of each file, by its path in the folder.
    source: Name of the folder beside it that holds the new files, if `moving`.
  """

  state: Literal['writing', 'moving', 'complete']
  writer: Mapping[str, Any]
  files: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
  source: str | None = None


def write(folder: epath.Path, commit: Commit) -> None:
  """Writes the file."""
  values = {'format': _FORMAT} | dataclasses.asdict(commit)
  text = json.dumps(values, indent=1)
  try:
    (folder / COMMIT).write_text(text)
  except BaseException as e:
    _storage_errors.forget_files(e)
    raise


def read(folder: epath.Path, *, who: str) -> Commit | None:
  """Returns the content of the file; None if there is none.

  Raises:
    ValueError: It is damaged, or of a later version.
  """
  try:
    if isinstance(folder, _paths.FsspecPath):
      folder.refresh()
    text = _bytes_of(folder / COMMIT)
  except (FileNotFoundError, NotADirectoryError):
    return None
  try:
    values = _json_objects.parse(text, path=folder / COMMIT)
    if values['format'] != _FORMAT:
      version = _regular.shown(values['format'])
      raise ValueError(f'format {version} is of a later version')
    if values['state'] not in _STATES or not isinstance(
        values['writer'], Mapping
    ):
      raise ValueError('state or writer is not what it should be')
    _check_names([*values['files'], values['source'] or 'x'])
    return Commit(
        state=values['state'],
        writer=values['writer'],
        files={
            k: (int(n), int(crc)) for k, (n, crc) in values['files'].items()
        },
        source=values['source'],
    )
  except (
      ValueError,
      KeyError,
      TypeError,
      AttributeError,
      OverflowError,  # A size of 1e999 is read as infinite.
  ) as e:
    raise ValueError(
        f'{who}: {folder / COMMIT} cannot be read: {e}. Write the folder again,'
        ' or copy it again.'
    ) from e


def _check_names(names: Sequence[Any]) -> None:
  """Raises for names that lead out of the folder or the one beside it."""
  for name in names:
    is_name = isinstance(name, str) and name and '\0' not in name
    if not is_name or name.startswith('/') or '..' in name.split('/'):
      raise ValueError(f'{_regular.shown(name)} is no name of a file in it')


def whole(folder: epath.Path, *, who: str) -> epath.Path:
  """Returns the folder to read, where a user names one.

  Args:
    folder: The user's path. It need not exist, or be ours.
    who: What asks, for messages.

  Returns:
    The same; or, while it is replaced, the one with the new files.

  Raises:
    ValueError: It is left from an interrupted write, or was changed since.
  """
  return _whole(folder, who=who)[0]


def read_files(
    folder: epath.Path, names: Sequence[str], *, who: str
) -> dict[str, bytes]:
  """Reads small files of a folder, all of one version of it.

  Args:
    folder: What a user names.
    names: Names of files. The folder must have them.
    who: What asks, for messages.

  Raises:
    ValueError: See `whole`; or a checksum is another.
  """
  bad = ''
  for attempt in range(_TRIES):
    place, commit = _whole(folder, who=who)
    try:
      with _storage_errors.explained(place, who=who):
        data = {name: _bytes_of(place / name) for name in names}
    except Exception:
      if commit is None or attempt == _TRIES - 1:
        raise
      _pause(folder)  # It was replaced meanwhile.
      continue
    files = commit.files if commit else {}
    wrong = [
        name
        for name in names
        if name in files and files[name] != (len(data[name]), _crc(data[name]))
    ]
    if not wrong:
      return data
    bad = wrong[0]
    if attempt < _TRIES - 1:
      _pause(folder)
  raise ValueError(
      f'{who}: {folder / bad} is not as it was written: its checksum is'
      f' another. {_AGAIN}'
  )


_AGAIN = (
    'It was copied in part, or changed afterwards. Write or copy it again; or'
    f' remove {COMMIT} in it to read it as it is.'
)


def _crc(data: bytes) -> int:
  return zlib.crc32(data)


def _bytes_of(file: epath.Path) -> bytes:
  """Reads a file to its end, however long TensorFlow remembers it to be."""
  _regular.check(file)
  with file.open('rb') as f:
    return b''.join(iter(lambda: f.read(_PIECE_BYTES), b''))


def _pause(folder: epath.Path) -> None:
  """Waits until a replaced file in a bucket is seen in its new form."""
  if not _paths.is_local(folder):
    time.sleep(_PAUSE_S)


def _whole(
    folder: epath.Path, *, who: str, again: bool = True
) -> tuple[epath.Path, Commit | None]:
  named = folder
  with _storage_errors.explained(folder, who=who):
    commit = read(folder, who=who)
    if commit is not None and commit.state == 'moving':
      source = folder.parent / str(commit.source)
      moved = read(source, who=who)
      if moved is None:  # Done meanwhile.
        commit = read(folder, who=who)
      else:
        folder, commit = source, moved
    if commit is None:
      return folder, None
    if commit.state != 'complete':
      raise ValueError(f'{who}: {interrupted(folder, commit)}')
    with futures.ThreadPoolExecutor(THREADS) as pool:
      sizes = list(pool.map(lambda name: size_of(folder / name), commit.files))
  for (name, (wanted, _)), size in zip(
      commit.files.items(), sizes, strict=True
  ):
    if size != wanted:
      if again and not _paths.is_local(folder):
        _pause(folder)
        return _whole(named, who=who, again=False)
      has = 'is missing' if size is None else f'has {size} bytes'
      raise ValueError(
          f'{who}: {folder} is an interrupted write or copy: {name} {has}, and'
          f' {COMMIT} says {wanted}. {_AGAIN}'
      )
  return folder, commit


def interrupted(folder: epath.Path, commit: Commit) -> str:
  """Returns the error for an incomplete folder."""
  writer = _owner.describe(commit.writer)
  return (
      f'{folder} is an interrupted write: {writer} has not finished it. Wait if'
      ' it still runs; otherwise write it again, which removes what is left.'
  )


def size_of(file: epath.Path) -> int | None:
  """Returns the size of a file, None if there is none."""
  try:
    return int(file.stat().length)
  except FileNotFoundError:
    return None
