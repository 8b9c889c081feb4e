"""Detects a file's format by its first bytes, and decompresses it."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import os
from typing import Any
import zlib

from etils import epath
import zstandard

from gemma4_lora.data.sources import _local_copies
from gemma4_lora.host import _storage_errors
from gemma4_lora.host.files import _regular

PARQUET = 'Parquet'
_STARTS = {
    b'PAR1': PARQUET,
    b'\x1f\x8b': 'gzip',
    b'\x28\xb5\x2f\xfd': 'zstd',
}
_LONGEST_START = max(map(len, _STARTS))
_SUFFIXES = {'.gz': 'gzip', '.zst': 'zstd'}
# Compressions that are not read.
_OTHERS = {
    b'BZh': 'bzip2',
    b'\xfd7zXZ': 'xz',
    b'PK\x03\x04': 'zip',
    b'\x04"M\x18': 'lz4',
}
# The window of `zstd --long=31`.
_MAX_WINDOW_BYTES = 1 << 31


def kind(path: epath.Path, *, who: str) -> str | None:
  """Returns `'gzip'`, `'zstd'` or `PARQUET`; None for plain lines.

  Args:
    path: A file, here or in a bucket.
    who: What asks, for messages.

  Raises:
    ValueError: It has another format, such as a web page.
  """
  _regular.check(path, who=who)
  with _storage_errors.explained(path, who=who), path.open('rb') as file:
    head = file.read(_regular.HEAD_BYTES)
  for start, name in _STARTS.items():
    if head.startswith(start):
      return name
  for start, name in _OTHERS.items():
    if head.startswith(start):
      raise ValueError(
          f'{who}: {os.fspath(path)} is compressed by {name}, which is not read.'
          ' Compress it by gzip or zstd.'
      )
  suffix = _SUFFIXES.get(path.suffix)
  if suffix and len(head) < _LONGEST_START:
    raise ValueError(
        f'{who}: {os.fspath(path)} is no whole {suffix} file (it has {len(head)}'
        ' bytes). Download or write it again.'
    )
  if head and (what := _regular.what_else(head)):
    raise ValueError(f'{who}: {os.fspath(path)}: {what}')
  return None


def decompress(path: epath.Path, target: str, *, name: str, who: str) -> None:
  """Writes a file as plain bytes.

  Args:
    path: The compressed file, here or in a bucket.
    target: The file to write.
    name: From `kind`.
    who: What asks, for messages.

  Raises:
    ValueError: It is damaged, or cut.
  """
  pieces = _local_copies.pieces(path, who=who)
  try:
    _local_copies.write_pieces(
        _decompressed(pieces, _DECODERS[name]), target, source=path
    )
  except (zlib.error, zstandard.ZstdError, EOFError) as e:
    raise ValueError(
        f'{who}: {os.fspath(path)} is no whole {name} file ({e}). Download or'
        ' write it again.'
    ) from None


def _decompressed(
    pieces: Iterable[bytes], new: Callable[[], Any]
) -> Iterator[bytes]:
  """Yields plain bytes; a file may be several streams, one after the other."""
  decoder = None
  for piece in pieces:
    while piece:
      decoder = decoder or new()
      yield decoder.decompress(piece)
      piece = b''
      if decoder.eof:
        # Tapes and some tools pad with zeros.
        piece, decoder = decoder.unused_data.lstrip(b'\0'), None
  if decoder is not None:
    raise EOFError('it ends in the middle')


def _zstd() -> Any:
  return zstandard.ZstdDecompressor(
      max_window_size=_MAX_WINDOW_BYTES
  ).decompressobj()


_DECODERS: dict[str, Callable[[], Any]] = {
    'gzip': lambda: zlib.decompressobj(wbits=31),
    'zstd': _zstd,
}
