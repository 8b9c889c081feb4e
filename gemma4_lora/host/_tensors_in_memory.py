"""A small safetensors file that has been read whole, as from a bucket."""

import json

import ml_dtypes
import numpy as np
import safetensors

# By the names in a header.
DTYPES = {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': ml_dtypes.bfloat16,
    'I64': np.int64,
    'I32': np.int32,
    'I16': np.int16,
    'I8': np.int8,
    'U8': np.uint8,
    'BOOL': np.bool_,
}


def read(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns the tensors and the metadata of a file.

  Args:
    data: The file's bytes. The tensors are views of them.

  Raises:
    ValueError: It is truncated, no safetensors file, or of a dtype that a LoRA
      cannot have.
  """
  try:
    found = safetensors.deserialize(data)
  except safetensors.SafetensorError as e:
    raise ValueError(str(e)) from e
  tensors = {}
  for name, x in found:
    if x['dtype'] not in DTYPES:
      raise ValueError(
          f'{name} has dtype {x["dtype"]}, which is not among'
          f' {sorted(DTYPES)}'
      )
    array = np.frombuffer(x['data'], DTYPES[x['dtype']])
    tensors[name] = array.reshape(x['shape'])
  length = int.from_bytes(data[:8], 'little')
  header = json.loads(data[8 : 8 + length])
  return tensors, header.get('__metadata__', {})
