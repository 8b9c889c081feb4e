"""Writes leaves as Orbax does, in the layout of the released checkpoints.

Orbax asks for a tree of arrays: all of them at once. A leaf of a type of our own
is read when its turn comes, and written piece by piece.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import itertools
import math
import pathlib
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers
import tensorstore as ts

from gemma4_lora.ckpts.sources import _contents
from gemma4_lora.gemma4 import _names
from gemma4_lora.host import _intact
from gemma4_lora.runs import _fused_leaves
from gemma4_lora.runs import _pieces
from gemma4_lora.runs import _run

# Pieces of arrays in the file: compressed, written and read one by one.
_CHUNK_BYTES = 2**24
# What tensorstore collects before it writes.
_FILE_BYTES = 2**27


def write(
    folder: pathlib.Path,
    leaves: Sequence[_run.BaseLeaf],
    fused: _fused_leaves.FusedLeaves,
) -> None:
  """Writes a checkpoint that `gm.ckpts.load_params` opens.

  Args:
    folder: An empty folder.
    leaves: All leaves of the model.
    fused: Reads them.
  """
  tree: dict[str, Any] = {}
  save_args: dict[str, Any] = {}
  for leaf in leaves:
    for root, value in (
        (tree, _Lazy(leaf)),
        (save_args, ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES)),
    ):
      *parents, name = _names.released(tuple(leaf.path.split('.')))
      for key in parents:
        root = root.setdefault(key, {})
      root[name] = value
  lazy = _LazyHandler(fused)
  registry = type_handlers.create_type_handler_registry((_Lazy, lazy))
  handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
  # Orbax makes its folder itself.
  made = folder / 'checkpoint'
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(
        made,
        args=ocp.args.PyTreeSave(
            tree,
            save_args=save_args,
            ocdbt_target_data_file_size=_FILE_BYTES,
        ),
    )
  for path in made.iterdir():
    path.rename(folder / path.name)
  made.rmdir()
  _contents.write(folder, lazy.digests)


@dataclasses.dataclass(frozen=True, eq=False)
class _Lazy:
  """A leaf that is not there yet."""

  leaf: _run.BaseLeaf


class _LazyHandler(type_handlers.NumpyHandler):
  """Writes such leaves as arrays, few at a time."""

  def __init__(self, fused: _fused_leaves.FusedLeaves):
    super().__init__(deepcopy_host_arrays=False)
    self._fused = fused
    # Digests of what was written, by Orbax's name.
    self.digests: dict[str, str] = {}

  async def serialize(self, values, infos, args=None):
    """See `NumpyHandler`. All is written when it returns."""
    args = args or [ocp.SaveArgs()] * len(values)
    rest = {
        value.leaf.path: (info, arg)
        for value, info, arg in zip(values, infos, args, strict=True)
    }
    leaves = [value.leaf for value in values]
    for group in self._fused.read(leaves, in_pieces=rest):
      arrays: list[Any] = [array for _, array in group]
      places = [rest[leaf.path] for leaf, _ in group]
      group.clear()
      for future in await super().serialize(
          arrays, [info for info, _ in places], [arg for _, arg in places]
      ):
        future.result()
      arrays.clear()
    return []

  async def _open_and_write(
      self,
      value: np.ndarray | _pieces.Pieces,
      tspec: dict[str, Any],
      ts_context: ts.Context,
  ) -> None:
    """Replaces Orbax's, which writes all chunks at once: twice the memory."""
    pieces: Iterable[tuple[int, np.ndarray]]
    if isinstance(value, _pieces.Pieces):
      pieces = value.pieces
      chunks = _chunks(value)
      tspec = {**tspec, 'metadata': {**tspec['metadata'], 'chunks': chunks}}
    else:
      pieces = [(0, value)]
    array = await ts.open(
        ts.Spec(tspec), create=True, open=True, context=ts_context
    )
    sizes: Any = array.chunk_layout.write_chunk.shape
    digest = _intact.RowsDigest()
    for first, piece in pieces:
      digest.add(first, piece)
      starts = [range(0, n, c) for n, c in zip(piece.shape, sizes, strict=True)]
      for place in itertools.product(*starts):
        index = tuple(map(_slice, place, sizes, piece.shape))
        target = index
        if first:
          start, stop = index[0].start + first, index[0].stop + first
          target = (slice(start, stop), *index[1:])
        await array[target].write(
            piece[index], can_reference_source_data_indefinitely=True
        )
    if (found := digest.of(value.shape[0])) is not None:
      self.digests[tspec['kvstore']['path'].strip('/')] = found


def _chunks(value: _pieces.Pieces) -> list[int]:
  """Returns a shape of chunks that lie in one piece: a few rows, or of one row."""
  chunks = [value.row_multiple]
  size = math.prod(value.shape[1:]) * value.dtype.itemsize * value.row_multiple
  for n in value.shape[1:]:
    cut = min(n, -(-size // _CHUNK_BYTES)) if chunks[-1] == 1 else 1
    chunks.append(-(-n // cut))
    size //= cut
  return chunks


def _slice(start: int, size: int, end: int) -> slice:
  return slice(start, min(start + size, end))
