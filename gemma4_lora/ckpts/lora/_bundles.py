"""Many small leaves as a few long arrays.

LoRA on a real model and its optimizer's state are thousands of small leaves.
Orbax spends 2 to 5 kB and some milliseconds on each, often more than the leaf's
own size.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from concurrent import futures
import math
import re
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from gemma4_lora import _trees
from gemma4_lora.host import _checksums
from gemma4_lora.host import _intact

# Size of a chunk; chunks are compressed, written and read in parallel.
_CHUNK_BYTES = 2**26

_BUNDLE = re.compile(r'(params|opt_state|step)_[a-z]+\d+')

# For each array, its dtype and the leaves in it, in order: `{'params_float32':
# ['float32', [[['layer_0', ..., 'a'], [32, 4]], ...]]}`. An array with a leaf's
# path as its name is that leaf, not a bundle.
Index = Mapping[str, Any]


def bundle(
    leaves: Mapping[_trees.Path, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Bundles leaves by their first key and their dtype.

  Args:
    leaves: For example `{('params', 'layer_0', ..., 'a'): f32[32, 4], ...}`.

  Returns:
    For example `{'params_float32': f32[n], ...}`, and the index of the leaves
    in them. Leaves of which this process holds only a part are not bundled.
  """
  small = {path: x for path, x in leaves.items() if _is_here(x)}
  groups: dict[str, list[_trees.Path]] = {}
  for path, leaf in small.items():
    groups.setdefault(f'{path[0]}_{leaf.dtype}', []).append(path)
  # One transfer for all, rather than one per leaf.
  host = jax.device_get(small)
  arrays = {
      name: np.concatenate([np.reshape(host[path], -1) for path in paths])
      for name, paths in groups.items()
  }
  whole = {path: x for path, x in leaves.items() if path not in small}
  arrays |= {_trees.join(path): x for path, x in whole.items()}
  groups |= {_trees.join(path): [path] for path in whole}
  index = {
      name: [
          str(arrays[name].dtype),
          [[list(path), list(leaves[path].shape)] for path in paths],
      ]
      for name, paths in groups.items()
  }
  return arrays, index


def are_bundles(names: Iterable[str]) -> bool:
  """Whether arrays are named as `bundle` names those of a train state."""
  return any(map(_BUNDLE.fullmatch, names))


def unbundle(arrays: Mapping[str, Any], index: Index) -> dict[_trees.Path, Any]:
  """Undoes `bundle` for the given arrays."""
  leaves = {}
  for name, array in arrays.items():
    start = 0
    said = sum(math.prod(shape) for _, shape in index[name][1])
    if said != math.prod(array.shape):
      raise ValueError(
          f'{name} has shape {list(array.shape)}, and by the fingerprint {said}'
          ' numbers lie in it: the checkpoint is damaged. Copy it again.'
      )
    for path, shape in index[name][1]:
      if _is_whole(name, index):
        leaves[tuple(path)] = array
        continue
      stop = start + math.prod(shape)
      leaves[tuple(path)] = array[start:stop].reshape(shape)
      start = stop
  return leaves


def digests(
    arrays: Mapping[str, Any], index: Index
) -> Callable[[], dict[str, str]]:
  """Returns a function that returns the digests of arrays.

  The returned function waits for bundles, which are hashed in the background.
  All processes must call this function.

  Args:
    arrays: Some of those that were bundled. Arrays that are not bundles may be
      sharded over other devices and processes than before.
    index: What was bundled.
  """
  bundles = {k: x for k, x in arrays.items() if not _is_whole(k, index)}
  others = {
      k: x
      for k, x in arrays.items()
      if k not in bundles and not _is_random_key(x)
  }
  pool = futures.ThreadPoolExecutor(1)
  hashed = pool.submit(
      lambda: {k: _intact.digest(x) for k, x in bundles.items()}
  )
  pool.shutdown(wait=False)
  summed = _checksums.checksums(others, of_all=True) if others else {}
  return lambda: hashed.result() | summed


def check(
    digests: Mapping[str, str],
    saved: Mapping[str, str],
    *,
    who: str,
    where: str,
) -> None:
  """Checks that arrays equal those that were saved.

  Args:
    digests: Digests of the arrays that were read.
    saved: Digests at the save; empty for files from before they were kept.
    who: What asks, for messages.
    where: Where the arrays are, for messages.

  Raises:
    ValueError: One is not.
  """
  for name, now in digests.items() if saved else ():
    if now != saved.get(name):
      raise ValueError(
          f'{who}: {where} is damaged: {name} is not what was saved: its digest'
          f' is {now}, and was {saved.get(name)}. Copy that step again; or'
          ' remove its folder, to go on from the step before.'
      )


def specs(index: Index) -> dict[_trees.Path, tuple[str, tuple[int, ...]]]:
  """Returns dtype and shape of each leaf."""
  return {
      tuple(path): (dtype, tuple(shape))
      for dtype, entries in index.values()
      for path, shape in entries
  }


def save_args(arrays: Mapping[str, Any], index: Index) -> ocp.args.PyTreeSave:
  """Returns how Orbax should save bundles."""
  args = {
      name: ocp.SaveArgs(
          chunk_byte_size=None if _is_whole(name, index) else _CHUNK_BYTES
      )
      for name in arrays
  }
  return ocp.args.PyTreeSave(dict(arrays), save_args=args)


def restore_args(
    index: Index, leaves: Mapping[_trees.Path, Any]
) -> ocp.args.PyTreeRestore:
  """Returns how Orbax should read bundles.

  Args:
    index: What was bundled.
    leaves: The leaves to restore into. They give the shardings of what was not
      bundled.
  """
  item = {
      name: leaves[tuple(entries[0][0])] if _is_whole(name, index) else 0
      for name, (_, entries) in index.items()
  }
  args = {
      name: ocp.checkpoint_utils.construct_restore_args(item[name])
      if _is_whole(name, index)
      else ocp.RestoreArgs(restore_type=np.ndarray)
      for name in index
  }
  return ocp.args.PyTreeRestore(item=item, restore_args=args)


def _is_whole(name: str, index: Index) -> bool:
  return name == _trees.join(index[name][1][0][0])


def _is_here(leaf: Any) -> bool:
  """Whether this process has all values of a leaf."""
  if isinstance(leaf, jax.Array):
    has_all = leaf.is_fully_addressable or leaf.is_fully_replicated
    return has_all and not _is_random_key(leaf)
  return isinstance(leaf, (np.ndarray, np.generic))


def _is_random_key(leaf: Any) -> bool:
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
