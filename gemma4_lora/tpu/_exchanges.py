"""What devices exchange in a compiled program."""

from collections.abc import Iterator
import dataclasses
import math
import re

from gemma4_lora.tpu import _hlo
from gemma4_lora.tpu import _hlo_text

KINDS = (
    'all-gather',
    'all-reduce',
    'reduce-scatter',
    'all-to-all',
    'ragged-all-to-all',
    'collective-permute',
    'collective-broadcast',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """Exchanges of one kind between devices, in one step.

  Attributes:
    kind: `'all-gather'`, ...
    count: How many; one in a loop counts as often as it runs.
    bytes: Of the whole arrays on one device: what all-gather returns,
      reduce-scatter takes, and the others take and return.
    wire_bytes: What one device sends, in rings.
  """

  kind: str
  count: int
  bytes: int
  wire_bytes: float


def collectives(
    program: _hlo.Program, num_devices: int
) -> tuple[Collective, ...]:
  """Returns what devices exchange, by kind.

  Args:
    program: What they run.
    num_devices: That the program was compiled for.
  """
  totals: dict[str, Collective] = {}
  seen = set()
  for kind, instruction, times in _exchanges(program):
    # Fusions that overlap an exchange with work repeat its instruction.
    channel = re.search(r'channel_id=(\d+)', instruction.rest)
    if channel is not None:
      if (kind, channel[1]) in seen:
        continue
      seen.add((kind, channel[1]))
    size = _group_size(instruction.rest) or num_devices
    num_bytes = _bytes_of(kind, instruction, size)
    old = totals.get(kind)
    totals[kind] = Collective(
        kind=kind,
        count=times + (old.count if old else 0),
        bytes=times * num_bytes + (old.bytes if old else 0),
        wire_bytes=times * num_bytes * _sent(kind, size)
        + (old.wire_bytes if old else 0.0),
    )
  return tuple(totals[kind] for kind in KINDS if kind in totals)


def _exchanges(
    program: _hlo.Program,
) -> Iterator[tuple[str, _hlo_text.Instruction, int]]:
  for name, times in program.times.items():
    for instruction in program.computations.get(name, ()):
      kind = instruction.opcode.removesuffix('-start')
      if kind in KINDS:
        yield kind, instruction, times


def _group_size(rest: str) -> int | None:
  """Returns how many devices exchange with one another, None for all.

  Three spellings: `[2,4]<=[8]`, `{{0,1},{2,3}}`, `mesh['a'=2,'b'=4] {'b'}`, the
  last also with a part of an axis, `{'b':(2)2}`.
  """
  iota = re.search(r'replica_groups=\[(\d+),(\d+)\]', rest)
  if iota is not None:
    return int(iota[2])
  mesh = re.search(r'replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}', rest)
  if mesh is not None:
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
    axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
  listed = re.search(r'replica_groups=\{\{([\d,]+)\}', rest)
  return len(listed[1].split(',')) if listed else None


def _bytes_of(
    kind: str, instruction: _hlo_text.Instruction, group_size: int
) -> int:
  """Bytes of the whole array; see `Collective.bytes`."""
  shape = instruction.shape
  if instruction.opcode.endswith('-start') and kind != 'all-reduce':
    shape = _result_of_start(shape)
  scale = group_size if kind == 'reduce-scatter' else 1
  return _hlo_text.shape_bytes(shape) * scale


def _result_of_start(shape: str) -> str:
  """`'(operands, results, ...)'` as the results."""
  if not shape.startswith('('):
    return shape
  parts, depth, start = [], 0, 1
  for i, char in enumerate(shape):
    depth += (char in '([{') - (char in ')]}')
    if (char == ',' and depth == 1) or (char == ')' and not depth):
      parts.append(shape[start:i].strip())
      start = i + 1
  return parts[1] if len(parts) > 1 else shape


def _sent(kind: str, group_size: int) -> float:
  """What one device sends over `Collective.bytes`, in a ring."""
  if kind in ('collective-permute', 'collective-broadcast'):
    return 1.0
  around = (group_size - 1) / group_size
  return 2 * around if kind == 'all-reduce' else around
