"""Checks that the data of a checkpoint is all there, without reading it.

Orbax reads arrays as late as it can, and by then the arrays of the state have
been freed to make room. This module finds truncated files first, from their
sizes.
"""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from concurrent import futures
import contextlib
import re
from typing import Any

from etils import epath
import tensorstore as ts

from gemma4_lora.ckpts.sources import _array_specs
from gemma4_lora.ckpts.sources import _locate
from gemma4_lora.host import _escapes
from gemma4_lora.host import _paths
from gemma4_lora.host.files import _json_objects
from gemma4_lora.host.files import _regular
from gemma4_lora.host.folders import _commit
from gemma4_lora.host.ranges import _bucket_reads

_MANIFEST = 'manifest.ocdbt'
# How errors of tensorstore begin, which are ValueErrors and others; then a page of
# what it was asked for.
_DAMAGED = re.compile(
    r'(DATA_LOSS|FAILED_PRECONDITION|INVALID_ARGUMENT|NOT_FOUND|OUT_OF_RANGE)'
    r': (?P<what>.*?)( \[(tensorstore_spec|source location)|\n|$)'
)


def check(
    directory: epath.Path, names: Collection[str] | None = None, *, who: str
) -> bool:
  """Checks the files that all arrays of one checkpoint share.

  Args:
    directory: The folder of the arrays.
    names: What it has, if that is known.
    who: The transform that asks, for messages.

  Returns:
    Whether all arrays share files; else each has a folder, see `check_folders`.

  Raises:
    ValueError: A file is missing or shorter than its data.
  """
  _regular.check_below(directory, who=who)
  if names is None:
    names = {x.name for x in directory.iterdir()}
  has_manifest = _MANIFEST in names
  metadata = _metadata(directory, who=who)
  is_shared = bool(metadata.get('use_ocdbt', has_manifest))
  if is_shared:
    if not has_manifest:
      raise ValueError(
          f'{who}: {directory} is half-written: it has no {_MANIFEST}, which'
          ' Orbax writes when all data is there; or a part of a copy. Copy it'
          ' again, or use an earlier step.'
      )
    _check_ocdbt(directory, who=who)
  return is_shared


def check_folders(
    directory: epath.Path, names: Iterable[str], *, who: str
) -> None:
  """Checks the files of arrays of which each has a folder.

  Args:
    directory: The folder of the arrays.
    names: The arrays, as Orbax names them.
    who: The transform that asks, for messages.

  Raises:
    ValueError: A file is missing or shorter than its data.
  """
  # Before Orbax said so here, it did not write chunks that are all zero.
  is_full = _metadata(directory, who=who).get(
      'store_array_data_equal_to_fill_value', False
  )
  _check_folders(directory, names, is_full=is_full, who=who)


def _metadata(directory: epath.Path, *, who: str) -> dict[str, Any]:
  try:
    return _json_objects.read(directory / _locate.METADATA)
  except ValueError as e:
    raise ValueError(
        f'{who}: {_locate.METADATA} of the checkpoint is damaged or cut short:'
        f' {e}'
    ) from e


@contextlib.contextmanager
def explained(directory: epath.Path, *, who: str) -> Iterator[None]:
  """Raises what tensorstore says of damaged data as an error with its folder.

  Other errors, and those of buckets, pass.

  Args:
    directory: The folder of the arrays.
    who: The transform that asks, for messages.

  Raises:
    ValueError: Data is damaged.
  """
  try:
    yield
  except Exception as e:
    said = _DAMAGED.match(str(e))
    if said is None or not _paths.is_local(directory):
      raise
    raise ValueError(
        f'{who}: {directory} is damaged: {_escapes.escaped(said["what"])}. Copy or download it'
        ' again; or, of a run, remove the folder of that step, to go on from the'
        ' step before.'
    ) from e


def has_index(directory: epath.Path) -> bool:
  """Whether all arrays share files with an index."""
  return (directory / _MANIFEST).exists()


def kvstore(directory: epath.Path) -> Any:
  """Returns the folder of a checkpoint as tensorstore's key-value store."""
  path = f'{directory}/'
  if '://' not in path:
    return {'driver': 'file', 'path': path}
  spec = _bucket_reads.kvstore(directory)
  return path if spec is None else spec | {'path': f'{spec["path"]}/'}


Place = tuple[epath.Path, int, int]


def values(directory: epath.Path) -> dict[str, bytes | Place]:
  """Returns each value of the index, or its file, offset and length, by key.

  Args:
    directory: The folder of the arrays.

  Returns:
    Keys as `layer_0.attn.q_einsum.w/.zarray`, one for each array, and
    `layer_0.attn.q_einsum.w/0.0.0`, one for each chunk. Nothing if the index has several nodes:
    keys below the root are cut short. Orbax writes one.
  """
  base = ts.KvStore.open(kvstore(directory)).result()
  location = (
      ts.ocdbt.dump(base).result()['versions'][-1]['root'].get('location')
  )
  node: Any = ts.ocdbt.dump(base, location).result() if location else {}
  if node.get('height') != 0:
    return {}
  found = {}
  for entry in node['entries']:
    key = entry['key'].decode(errors='replace')
    if 'inline_value' in entry:
      found[key] = entry['inline_value']
    else:
      name, offset, length = _split(entry['indirect_value'])
      found[key] = directory / name, offset, length
  return found


def _check_ocdbt(directory: epath.Path, *, who: str) -> None:
  """Compares the files' sizes to the index."""
  try:
    entries = list(_entries(ts.KvStore.open(kvstore(directory)).result()))
    ends = _file_ends(entries)
  except (ValueError, OSError, LookupError, TypeError) as e:
    file = directory / _MANIFEST
    if (other := _regular.what_else(_head(file))) is not None:
      raise ValueError(f'{who}: {file} is no index of Orbax: {other}') from e
    raise ValueError(
        f'{who}: the index of the checkpoint is damaged or cut short:'
        f' {directory}. Copy or download it again.'
    ) from e
  with futures.ThreadPoolExecutor(_commit.THREADS) as pool:
    files = [directory / name for name in ends]
    sizes = dict(zip(ends, pool.map(_commit.size_of, files), strict=True))
  for name, end in sorted(ends.items()):
    file, size = directory / name, sizes[name]
    if size is None or size < end:
      has = 'is missing' if size is None else f'has {size} bytes'
      raise ValueError(
          f'{who}: the checkpoint is truncated: {file} {has}, and holds data'
          f' up to byte {end}. Copy or download it again.'
      )
  _check_specs(directory, entries, who=who)


def _head(file: epath.Path) -> bytes:
  """Returns the first bytes of a file; empty if it is not a file."""
  try:
    with file.open('rb') as f:
      return f.read(_regular.HEAD_BYTES)
  except OSError:
    return b''


def _check_specs(
    directory: epath.Path, entries: Iterable[Mapping[str, Any]], *, who: str
) -> None:
  """Compares the metadata of arrays with the bytes of their values."""
  specs: dict[str, tuple[str, bytes]] = {}
  sizes: dict[str, int] = {}
  total = 0
  for entry in entries:
    key = entry.get('key', b'').decode(errors='replace')
    name, _, last = key.rpartition('/')
    if last in _array_specs.NAMES and 'inline_value' in entry:
      specs[name] = last, entry['inline_value']
      continue
    size = len(entry.get('inline_value', b''))
    if 'indirect_value' in entry:
      size = _split(entry['indirect_value'])[2]
    array = name.partition('/c')[0]
    sizes[array] = sizes.get(array, 0) + size
    total += size
  for name, (last, data) in specs.items():
    where = f'{directory}: {name}/{last} of the index'
    spec = _array_specs.parse(data, name=last, where=where, who=who)
    # Where the index has several nodes, names are cut short.
    spec.check_bytes(sizes.get(name) or total, who=who)


def _file_ends(entries: Iterable[Mapping[str, Any]]) -> dict[str, int]:
  """Returns, by data file, the byte at which its last value ends."""
  ends: dict[str, int] = {}
  for entry in entries:
    for kind in ('location', 'indirect_value'):
      if kind in entry:
        name, offset, length = _split(entry[kind])
        ends[name] = max(ends.get(name, 0), offset + length)
  return ends


def _split(location: str) -> tuple[str, int, int]:
  """Returns file, offset and length of "value:<folder>:<file>:<offset>:<length>"."""
  _, folder, file, offset, length = location.split(':')
  return f'{folder}{file}', int(offset), int(length)


def _entries(base: ts.KvStore) -> Iterator[dict[str, Any]]:
  """Yields the entries of all nodes of the database, the root's first."""
  manifest = ts.ocdbt.dump(base).result()
  todo = [manifest['versions'][-1]['root']]
  while todo:
    entry = todo.pop()
    yield entry
    if 'location' in entry:
      node: Any = ts.ocdbt.dump(base, entry['location']).result()
      todo += node['entries']


def _check_folders(
    directory: epath.Path, names: Iterable[str], *, is_full: bool, who: str
) -> None:
  """Checks that each array's folder has all of its chunks."""
  for name in names:
    folder = directory / name
    found = [x for x in _array_specs.NAMES if (folder / x).exists()]
    if not found:
      raise ValueError(
          f'{who}: the checkpoint is incomplete: {folder} has no array. Copy or'
          ' download it again.'
      )
    file = folder / found[0]
    spec = _array_specs.parse(
        _regular.read(file, who=who), name=file.name, where=str(file), who=who
    )
    wanted = spec.files(folder)
    stored = {f: f.stat().length for f in wanted if f.exists()}
    bad = [f for f in wanted if f not in stored and is_full]
    bad += [f for f, size in stored.items() if not size]
    if bad:
      raise ValueError(
          f'{who}: the checkpoint is truncated: {len(bad)} of'
          f' {len(wanted)} chunks of {folder} are missing or empty. Copy or'
          ' download it again.'
      )
    spec.check_bytes(sum(stored.values()) or _total(directory), who=who)


def _total(directory: epath.Path) -> int:
  """Returns how many bytes there are in all."""
  return sum(
      _total(x) if x.is_dir() else x.stat().length for x in directory.iterdir()
  )
