"""A small safetensors file as arrays: read whole, as from a bucket, or mapped."""

from collections.abc import Mapping
import pathlib

from etils import epath
import numpy as np

from gemma4_lora.host.files import _regular
from gemma4_lora.host.files import _safetensors_header


def read(
    data: bytes | np.ndarray, *, path: epath.PathLike, who: str = ''
) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
  """Returns the tensors and the metadata of a file.

  Args:
    data: The file's bytes, or as an array of `uint8`. The tensors are views of them.
    path: The file's path, for messages.
    who: What asks, for messages.

  Raises:
    ValueError: It is truncated, no safetensors file, or of a dtype that a LoRA
      cannot have.
  """
  header = _safetensors_header.read(
      lambda start, stop: bytes(data[start:stop]),
      len(data),
      path=path,
      who=who,
  )
  tensors = {}
  for name, x in header.entries.items():
    count = (x.stop - x.start) // x.dtype.itemsize
    flat = np.frombuffer(data, x.dtype, count=count, offset=x.start)
    tensors[name] = flat.reshape(x.shape)
  return tensors, header.metadata


def mapped(
    path: epath.Path, *, who: str = ''
) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
  """Returns the same of a file on this machine, whose tensors are mapped.

  Args:
    path: The file's path.
    who: What asks, for messages.

  Raises:
    ValueError: See `read`; or it is a pipe or a device.
  """
  _regular.check(path, who=who)
  local = pathlib.Path(path)
  is_empty = not local.stat().st_size  # Cannot be mapped.
  data = b'' if is_empty else np.memmap(local, np.uint8, mode='r')
  return read(data, path=path, who=who)
