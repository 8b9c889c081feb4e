"""Reads the exchanges between devices from a compiled program's text.

As `_hlo`, it knows XLA's text format; `tests/tpu/program/exchanges_test.py` holds it to
programs that XLA compiled.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import re

from gemma4_lora.tpu.program import _hlo

# Names of operations; on a TPU, `-start` is appended.
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
    bytes: Bytes of the whole arrays on one device: what all-gather returns,
      reduce-scatter takes, and the others take and return.
    wire_bytes: Bytes that one device sends, in rings.
  """

  kind: str
  count: int
  bytes: int
  wire_bytes: float


def collectives(
    program: _hlo.Program, num_devices: int
) -> tuple[Collective, ...]:
  """Returns exchanges between devices, by kind.

  One branch of a conditional runs: the largest of each kind counts.

  Args:
    program: Program of one device.
    num_devices: How many devices the program was compiled for.
  """
  totals = _Exchanges(program, num_devices).of(program.entry)
  return tuple(totals[kind] for kind in KINDS if kind in totals)


class _Exchanges:
  """Exchanges in a computation and those that it calls."""

  def __init__(self, program: _hlo.Program, num_devices: int):
    self._program = program
    self._num_devices = num_devices
    self._trips = {(x.parent, x.body): x.trips or 1 for x in program.loops}
    self._seen: set[tuple[str, str]] = set()
    self._found: dict[str, dict[str, Collective]] = {}

  def of(self, name: str) -> dict[str, Collective]:
    """Returns totals by kind, of one run of a computation."""
    if name not in self._found:
      totals: dict[str, Collective] = {}
      for instruction in self._program.computations.get(name, ()):
        own = self._own(instruction)
        parts = [own] if own else []
        called = [self.of(x) for x in instruction.called]
        if instruction.opcode == 'conditional':
          called = [_combined(called, max)]
        times = self._trips.get((name, instruction.attribute('body') or ''), 1)
        parts += [
            {kind: _times(x, times) for kind, x in found.items()}
            for found in called
        ]
        totals = _combined([totals, *parts], lambda x, y: x + y)
      self._found[name] = totals
    return self._found[name]

  def _own(self, instruction: _hlo.Instruction) -> dict[str, Collective]:
    kind = instruction.opcode.removesuffix('-start')
    if kind not in KINDS:
      return {}
    # Fusions that overlap an exchange with work repeat its instruction.
    channel = re.search(r'channel_id=(\d+)', instruction.rest)
    if channel is not None:
      if (kind, channel[1]) in self._seen:
        return {}
      self._seen.add((kind, channel[1]))
    size = _group_size(instruction.rest) or self._num_devices
    num_bytes = _bytes_of(kind, instruction, size)
    return {
        kind: Collective(
            kind=kind,
            count=1,
            bytes=num_bytes,
            wire_bytes=num_bytes * _sent(kind, size),
        )
    }


def _combined(
    parts: Sequence[Mapping[str, Collective]],
    number: Callable[[float, float], float],
) -> dict[str, Collective]:
  """Returns one total by kind, made number by number."""
  totals: dict[str, Collective] = {}
  for part in parts:
    for kind, x in part.items():
      old = totals.get(kind)
      if old is not None:
        x = Collective(
            kind=kind,
            count=int(number(old.count, x.count)),
            bytes=int(number(old.bytes, x.bytes)),
            wire_bytes=number(old.wire_bytes, x.wire_bytes),
        )
      totals[kind] = x
  return totals


def _times(x: Collective, times: int) -> Collective:
  return dataclasses.replace(
      x,
      count=x.count * times,
      bytes=x.bytes * times,
      wire_bytes=x.wire_bytes * times,
  )


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


def _bytes_of(kind: str, instruction: _hlo.Instruction, group_size: int) -> int:
  """Bytes of the whole array; see `Collective.bytes`."""
  shape = instruction.shape
  if instruction.opcode.endswith('-start') and kind != 'all-reduce':
    shape = _result_of_start(shape)
  scale = group_size if kind == 'reduce-scatter' else 1
  return _hlo.shape_bytes(shape) * scale


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
