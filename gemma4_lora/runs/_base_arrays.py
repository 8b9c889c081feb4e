"""Arrays of a run's base: read, and compared with what LoRA was trained on."""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from gemma4_lora import _trees
from gemma4_lora.ckpts.sources import _checkpoint_layouts
from gemma4_lora.ckpts.sources import _hugging_face
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.host import _checksums
from gemma4_lora.runs import _places
from gemma4_lora.runs import _run

# By checkpoint, and by the path there.
Arrays = Mapping[tuple[_open.Source, _trees.Path], np.ndarray]


def read(leaves: Sequence[_run.BaseLeaf], *, who: str) -> Arrays:
  """Returns all arrays that leaves are made of.

  Args:
    leaves: Some of a run's; those without a place have no array.
    who: The command, for messages.

  Raises:
    ValueError: An array does not match its checkpoint's digest.
  """
  keys: dict[_open.Source, set[_trees.Path]] = {}
  for leaf in leaves:
    if leaf.place is not None:
      stored = leaf.place.stored
      some = {x.key for x in stored.parts} or {stored.key}
      keys.setdefault(leaf.place.source, set()).update(some)
  return {
      (source, key): array
      for source, some in keys.items()
      for key, array in _read(source, some, who=who)
  }


def quantized(
    stored: _checkpoint_layouts.Stored, arrays: Arrays, source: _open.Source
) -> dict[str, Any]:
  """Returns a quantised array, made of its codes and scales.

  Args:
    stored: What is in the checkpoint.
    arrays: Its codes and scales, and maybe others.
    source: The checkpoint.
  """
  value: dict[str, Any] = {}
  for part in stored.parts:
    *scopes, name = part.path[len(stored.path) :]
    scope = value
    for key in scopes:
      scope = scope.setdefault(key, {})
    scope[name] = np.asarray(arrays[source, part.key])
  assert stored.encoding is not None
  # Some dtypes are wider in the file.
  return jax.tree.map(
      lambda x, like: x.astype(like.dtype, copy=False),
      value,
      stored.encoding.abstract(stored.shape),
  )


class BaseChecksums:
  """Checksums of the base that LoRA was trained on."""

  def __init__(
      self, run: _run.Run, *, changed: Collection[str], init: str, who: str
  ):
    """Creates it.

    Args:
      run: The run. Without a fingerprint, nothing is compared.
      changed: Dotted paths of leaves that LoRA changes.
      init: `init_lora_weights=` of the model.
      who: The command, for messages.
    """
    self._changed, self._init, self._who = changed, init, who
    self._checksums: Mapping[str, str] = {}
    if run.fingerprint is not None:
      self._checksums = run.fingerprint['base'].get('checksums', {})

  def check(
      self,
      leaf: _run.BaseLeaf,
      place: _places.Place,
      new: str,
      *,
      path: str = '',
  ) -> None:
    """Compares the checksum of a leaf with the run's.

    Args:
      leaf: The leaf.
      place: Where it is.
      new: Its checksum.
      path: Path of its codes or scales, if `new` is theirs; default: the
        leaf's.

    Raises:
      ValueError: They differ.
    """
    path = path or leaf.path
    old = self._checksums.get(path)
    if old is None or new == old:
      return
    is_initialized = place.released and leaf.path in self._changed
    if is_initialized and self._init != 'default':
      # Another machine may round differently. Leaves without LoRA still show
      # whether this is another base.
      logging.warning(
          '%s: %s is not bit for bit what init_lora_weights=%r left in the run.',
          self._who,
          leaf.path,
          self._init,
      )
      return
    raise ValueError(
        f'{self._who}: {path} is not what LoRA was trained on (checksum'
        f' {old} in the run, {new} in {place.source.path}). Give init_transform='
        ' the checkpoint that the run started from.'
    )


def checksum(array: np.ndarray, dtype: np.dtype) -> str:
  """Returns the checksum of an array as it is in a dtype."""
  out = _checksums.RowsChecksum(array.shape, dtype)
  out.add(0, array)
  return out.value


def _read(
    source: _open.Source, keys: set[_trees.Path], *, who: str
) -> Iterator[tuple[_trees.Path, np.ndarray]]:
  """Yields arrays of a checkpoint."""
  source.check(keys, who=who)
  if isinstance(source, _hugging_face.HuggingFaceSource):
    # Mapped, not copied: they are written and forgotten.
    yield from ((key, source.weights[key].read()) for key in keys)
    return
  args = {key: ocp.RestoreArgs(restore_type=np.ndarray) for key in keys}
  yield from source.read(args).items()
