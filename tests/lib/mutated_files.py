"""Damage to files, by chance: bits, pieces, and values of JSON."""

from collections.abc import Callable
import json
import os
import pathlib
import random
from typing import Any

# What stands in files of others that nobody expects.
_ODD = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**40, 2**63, 10**30, 0.5, 1e308,
    float('nan'), float('inf'), '', 'x', '0', '..', '../x', '\0', '\ud800', 'é',
    '(', '(.*)*x', 'model.layers.999999999.x', 'layer_999999999', 'F64', '<f8',
    'zstd', 'norm', 'x' * 5000, [], [0], [None], [[]], [2**40], {}, {'a': {}},
    {'name': 3},
)  # fmt: skip
_INSTEAD = (
    b'',
    b'{}',
    b'[]',
    b'null',
    b'3',
    b'"x"',
    b'{"a": 1, "a": 2}',
    b'[' * 100_000,
    b'\xff\xfe{\x00}\x00',
    b'\x00' * 64,
    b'<!DOCTYPE html><html></html>',
    b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n',
)


def mutate(file: pathlib.Path, rng: random.Random, *, part: str) -> str:
  """Damages a file, and says how.

  Args:
    file: The file.
    rng: What chooses.
    part: `'all'`; `'header'` of a safetensors file, whose data carries no
      checksum.
  """
  if part == 'header':
    return _mutate_header(file, rng)
  data = file.read_bytes()
  names = list(_ON_BYTES)
  if _object(data) is not None:
    names += ['json'] * len(names)
  kind = rng.choice([*names, 'instead', 'gone', 'pipe'])
  if kind == 'gone':
    file.unlink()
  elif kind == 'pipe':
    file.unlink()
    os.mkfifo(file)
  elif kind == 'instead':
    file.write_bytes(rng.choice(_INSTEAD))
  elif kind == 'json':
    file.write_bytes(_mutate_json(data, rng))
  else:
    file.write_bytes(_ON_BYTES[kind](data, rng))
  return kind


def _mutate_header(file: pathlib.Path, rng: random.Random) -> str:
  data = file.read_bytes()
  end = 8 + int.from_bytes(data[:8], 'little')
  head, rest = data[:end], data[end:]
  kind = rng.choice(
      [*_ON_BYTES, *['json'] * 4, *['entry'] * 8, 'length', 'cut', 'longer']
      + ['instead', 'gone', 'pipe']
  )
  if kind in ('gone', 'pipe'):
    file.unlink()
    if kind == 'pipe':
      os.mkfifo(file)
    return kind
  if kind == 'instead':
    data = rng.choice(_INSTEAD)
  elif kind == 'json':
    text = _mutate_json(head[8:], rng)
    data = len(text).to_bytes(8, 'little') + text + rest
  elif kind == 'entry':
    text = _mutate_entry(json.loads(head[8:]), rng)
    data = len(text).to_bytes(8, 'little') + text + rest
  elif kind == 'length':
    length = end - 8 + rng.choice([-8, -2, -1, 1, 2, 8, 2**20, 2**40, 2**62])
    data = (length % 2**64).to_bytes(8, 'little') + data[8:]
  elif kind == 'cut':
    data = data[: rng.randrange(len(data))]
  elif kind == 'longer':
    data += rng.randbytes(rng.randint(1, 64))
  else:
    data = _ON_BYTES[kind](head, rng) + rest
  file.write_bytes(data)
  return kind


def _mutate_entry(header: dict[str, Any], rng: random.Random) -> bytes:
  """Lets what is said of one tensor contradict itself or another."""
  names = [name for name in header if name != '__metadata__']
  one, other = (header[rng.choice(names)] for _ in range(2))
  start, stop = one['data_offsets']
  shift = rng.choice([1, 2, 4, 64, stop - start])
  kind = rng.choice(['offsets', 'shift', 'wider', 'all', 'dtype', 'shape'])
  if kind == 'offsets':
    one['data_offsets'] = list(other['data_offsets'])
  elif kind == 'shift':
    shift *= rng.choice([-1, 1])
    one['data_offsets'] = [start + shift, stop + shift]
  elif kind == 'wider':
    one['data_offsets'] = [start, stop + shift]
  elif kind == 'all':
    for name in names:
      header[name]['data_offsets'] = [
          x + shift for x in header[name]['data_offsets']
      ]
  elif kind == 'dtype':
    one['dtype'] = rng.choice(['F32', 'F16', 'BF16', 'I32', 'U8', 'F64'])
  else:
    one['shape'] = list(other['shape'])
  return json.dumps(header).encode()


def _flip(data: bytes, rng: random.Random) -> bytes:
  new = bytearray(data)
  for _ in range(rng.choice([1, 1, 1, 2, 8])):
    if new:
      new[rng.randrange(len(new))] ^= 1 << rng.randrange(8)
  return bytes(new)


def _two(data: bytes, rng: random.Random) -> tuple[int, int]:
  return tuple(sorted(rng.randrange(len(data) + 1) for _ in range(2)))


def _truncate(data: bytes, rng: random.Random) -> bytes:
  return data[: rng.randrange(len(data) + 1)]


def _extend(data: bytes, rng: random.Random) -> bytes:
  return data + rng.randbytes(rng.randint(1, 64))


def _swap(data: bytes, rng: random.Random) -> bytes:
  a, b = _two(data, rng)
  return data[b:] + data[a:b] + data[:a]


def _remove(data: bytes, rng: random.Random) -> bytes:
  a, b = _two(data, rng)
  return data[:a] + data[b:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
  a, b = _two(data, rng)
  return data[:b] + data[a:]


def _zero(data: bytes, rng: random.Random) -> bytes:
  a, b = _two(data, rng)
  return data[:a] + bytes(b - a) + data[b:]


_ON_BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    'flip': _flip,
    'truncate': _truncate,
    'extend': _extend,
    'swap': _swap,
    'remove': _remove,
    'repeat': _repeat,
    'zero': _zero,
}


def _object(data: bytes) -> Any:
  try:
    value = json.loads(data)
  except (ValueError, RecursionError):
    return None
  return value if isinstance(value, (dict, list)) and value else None


def _mutate_json(data: bytes, rng: random.Random) -> bytes:
  """Changes values, names and their order."""
  root = json.loads(data)
  for _ in range(rng.choice([1, 1, 1, 2, 3])):
    places = list(_places(root))
    if not places:
      break
    box, key = rng.choice(places)
    kind = rng.choice(['odd', 'odd', 'odd', 'drop', 'rename', 'other', 'near'])
    if kind == 'odd':
      box[key] = rng.choice(_ODD)
    elif kind == 'drop':
      del box[key]
    elif kind == 'rename' and isinstance(box, dict):
      box[f'{key}{rng.choice(["x", ".0", "é"])}'] = box.pop(key)
    elif kind == 'other':
      other, name = rng.choice(places)
      box[key] = json.loads(json.dumps(other[name]))
    elif isinstance(box[key], (int, float)):
      box[key] += rng.choice([-1, 1, 8, -8])
    else:
      box[key] = [box[key]]
  return json.dumps(root).encode('utf8', 'surrogatepass')


def _places(value: Any) -> list[tuple[Any, Any]]:
  """Every key of every object, and every index of every list."""
  found, todo = [], [value]
  while todo:
    box = todo.pop()
    keys = box if isinstance(box, dict) else range(len(box))
    for key in keys:
      found.append((box, key))
      if isinstance(box[key], (dict, list)):
        todo.append(box[key])
  return found
