"""Checks arrays as they are read: digests, NaN, infinity, and scales.

The file `digests.json`, beside the arrays that we write, has the digest of each,
by Orbax's name. Checkpoints of other programs, and older ones of ours, have
none.
"""

from collections.abc import Mapping
import dataclasses
import functools
import json
import os
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from gemma4_lora.gemma4 import _names
from gemma4_lora.host import _intact
from gemma4_lora.quant import _format

NAME = 'digests.json'


@dataclasses.dataclass(frozen=True)
class Written:
  """An array as it was written.

  Attributes:
    digest: Its digest.
    num_rows: Size of its first axis.
  """

  digest: str
  num_rows: int


def write(folder: os.PathLike[str], digests: Mapping[str, str]) -> None:
  """Writes the file.

  Args:
    folder: Folder of the arrays.
    digests: Digest of each array, by Orbax's name.
  """
  text = json.dumps(_intact.sealed({'arrays': dict(digests)}), indent=1)
  (epath.Path(folder) / NAME).write_text(text)


def read(folder: epath.Path) -> dict[str, str]:
  """Returns the digests of the file; empty if there is no file.

  Raises:
    ValueError: It is damaged.
  """
  file = folder / NAME
  if not file.exists():
    return {}
  try:
    values = json.loads(file.read_text())
    _intact.check_seal(values)
    return dict(values['arrays'])
  except (ValueError, TypeError, KeyError) as e:
    raise ValueError(
        f'{file} is damaged: {e}. Copy or download the checkpoint again.'
    ) from e


def is_on_host(array: Any) -> bool:
  """Whether a whole array can be checked without a copy."""
  if not isinstance(array, jax.Array):
    return True
  device, *others = array.devices()
  return not others and device.platform == 'cpu'


def problem(name: str, array: Any) -> str | None:
  """Returns a problem of an array's values, or an empty string.

  Args:
    name: Name of the array.
    array: All of it or some rows.
  """
  if not jnp.issubdtype(array.dtype, jnp.floating):
    return None
  last = name.rpartition('.')[2]
  is_scales = last == _format.SCALES
  # Infinite clip bounds mean no bound.
  infinite = last.removeprefix('clip_') not in _names.CLIP_BOUNDS
  for piece in _pieces(array):
    if _has_nan(piece, infinite):
      what = 'NaN' if _has_nan(piece, False) else 'infinite values'
      return f'{name} has {what}'
    # NF4 gives scales of 0 to weights that are all 0.
    if is_scales and piece.size and piece.min() < 0:
      return f'{name} has scales below 0'
  return None


def _pieces(array: Any) -> list[Any]:
  """Returns an array on the host, or this process's part on its devices."""
  if not isinstance(array, jax.Array):
    return [np.asarray(array)]
  pieces = [x.data for x in array.addressable_shards if x.replica_id == 0]
  if all(x.platform == 'cpu' for x in array.devices()):
    return [np.asarray(x) for x in pieces]  # Without a copy.
  return pieces


def _has_nan(piece: Any, infinite: bool) -> bool:
  """Whether there is NaN, or an infinite value if these count."""
  if isinstance(piece, np.ndarray):
    return _intact.has_nan(piece, infinite=infinite)
  return bool(_on_device(piece, infinite))


@functools.partial(jax.jit, static_argnums=1)
def _on_device(array: jax.Array, infinite: bool) -> jax.Array:
  is_bad = ~jnp.isfinite(array) if infinite else jnp.isnan(array)
  return jnp.any(is_bad)
