"""Weights of 4 bits in files of transformers.

`pack-quantized` of compressed-tensors is read, symmetric and of 4 bits: a
linear's `weight_packed` has eight codes in an int32, the first in its lowest
bits, each 8 more than the integer that it stands for; `weight_scale` is
`[out, in / group]`, and `weight_shape` the shape without packing.
https://github.com/vllm-project/compressed-tensors
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import re

from absl import logging
from etils import epath
import numpy as np

from gemma4_lora.hf.weights import _mapped
from gemma4_lora.host.files import _regular

_PACKED, _SCALE, _SHAPE = '_packed', '_scale', '_shape'
_PER_INT = 8
# Number of codes that are unpacked at once.
_BLOCK = 2**22

# Tensor names of other formats, which are not read.
_OTHERS = {
    r'.*\.(qweight|qzeros|g_idx)': 'GPTQ or AWQ',
    r'.*\.weight\.(absmax|quant_map|nested_absmax|quant_state\..*)': (
        'bitsandbytes'
    ),
    r'.*\.(SCB|CB)': 'bitsandbytes',
    r'.*\.weight_(zero_point|g_idx)': (
        'compressed-tensors that is not symmetric'
    ),
    r'.*\.weight_global_scale': 'compressed-tensors of 4-bit floats',
    r'.*\.(scales|biases)': 'MLX',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packed:
  """A weight that is packed; like `_mapped.Tensor`.

  Attributes:
    codes: `int32[out, in / 8]`.
    scales: `[out, in / group]`.
    shape: The weight's shape, `[out, in]`.
    what: The checkpoint's path and the weight's name, for messages.
  """

  codes: _mapped.Tensor
  scales: _mapped.Tensor
  shape: tuple[int, ...]
  what: str

  @property
  def dtype(self) -> np.dtype:
    return self.scales.dtype

  def read(self) -> np.ndarray:
    """Returns codes times scales, rounded once."""
    return self._unpack(self.codes.read(), self.scales.read())

  load = read

  def begin(self) -> Callable[[], np.ndarray]:
    """See `_mapped.Tensor`."""
    if self.codes.file.is_local:
      return self.read
    codes, scales = self.codes.begin(), self.scales.begin()
    return lambda: self._unpack(codes(), scales())

  def _unpack(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    # NaN is found later, in the weights.
    if num_bad := int(np.sum(scales <= 0)):
      logging.warning(
          '%s: %d of %d scales are 0 or below, which no quantiser writes: the'
          ' checkpoint may be damaged.',
          self.what,
          num_bad,
          scales.size,
      )
    out, size = self.shape
    group = size // scales.shape[1]
    weight = np.empty(self.shape, self.dtype)
    step = max(1, _BLOCK // size)
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    for start in range(0, out, step):
      rows = slice(start, start + step)
      words = np.ascontiguousarray(codes[rows]).view(np.uint32)
      levels = ((words[..., None] >> shifts) & 15).astype(np.float32) - 8
      levels = levels.reshape(len(words), -1)[:, :size]
      wide = np.repeat(scales[rows].astype(np.float32), group, axis=1)
      weight[rows] = (levels * wide).astype(self.dtype)
    return weight


Tensors = Mapping[str, _mapped.Tensor]


def unpacked(
    tensors: Tensors, *, path: epath.Path, who: str
) -> dict[str, _mapped.Tensor | Packed]:
  """Returns tensors with each packed weight under its own name.

  Args:
    tensors: All tensors of a checkpoint, by name.
    path: The checkpoint's path, for messages.
    who: The function that asks, for messages.

  Raises:
    ValueError: A weight is packed in an unknown way.
  """
  found: dict[str, _mapped.Tensor | Packed] = dict(tensors)
  packed = []
  for name in tensors:
    if not name.endswith(f'.weight{_PACKED}'):
      continue
    weight = name.removesuffix(_PACKED)
    if weight in tensors:
      raise ValueError(
          f'{who}: {path}: {_regular.shown(weight)} and {_regular.shown(name)}'
          ' are one weight under two names. Remove one of them.'
      )
    parts = [found.pop(name)]
    for end in (_SCALE, _SHAPE):
      if f'{weight}{end}' not in found:
        raise ValueError(
            f'{who}: {path}: {name} is packed, and there is no {weight}{end}.'
        )
      parts.append(found.pop(f'{weight}{end}'))
    # All shapes at once: in a bucket, each takes as long as a large tensor.
    packed.append((weight, name, parts, parts[-1].begin()))
  for weight, name, (codes, scales, _), shape in packed:
    found[weight] = _packed(name, codes, scales, shape(), path=path, who=who)
  for name in found:
    for pattern, format_ in _OTHERS.items():
      if re.fullmatch(pattern, name):
        raise ValueError(
            f'{who}: {path}: {name}: unknown packed format: it looks like'
            f' {format_}. Read are weights that are not packed (of QAT, the'
            ' unquantised ones), and pack-quantized of compressed-tensors'
            ' (symmetric, of 4 bits).'
        )
  return found


def _packed(
    name: str, codes, scales, shape, *, path: epath.Path, who: str
) -> Packed:
  """Returns one weight, after checks of its packing."""
  problem = None
  is_short = shape.dtype.kind in 'iu' and shape.size <= _PER_INT
  weight_shape = tuple(int(n) for n in shape.reshape(-1)) if is_short else ()
  if codes.dtype != np.int32:
    problem = f'its dtype is {codes.dtype}, and not int32'
  elif len(weight_shape) != 2:
    problem = f'its weight_shape is {list(weight_shape)}'
  elif codes.shape != (weight_shape[0], -(-weight_shape[1] // _PER_INT)):
    problem = (
        f'{list(codes.shape)} integers are not 4 bits for each of'
        f' {list(weight_shape)} weights'
    )
  elif (
      scales.shape[:1] != weight_shape[:1]
      or len(scales.shape) != 2
      or not scales.shape[1]
      or weight_shape[1] % scales.shape[1]
  ):
    problem = f'scales {list(scales.shape)} do not divide {list(weight_shape)} weights'
  if problem:
    raise ValueError(
        f'{who}: {path}: {name}: unknown packed format: {problem}. Of the'
        ' formats of compressed-tensors, only pack-quantized with 4 bits is'
        ' read.'
    )
  what = f'{who}: {path}: {name}'
  return Packed(codes=codes, scales=scales, shape=weight_shape, what=what)
