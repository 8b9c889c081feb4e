"""A compiled program: its computations, and how often each of them runs."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
import re

from gemma4_lora.tpu import _hlo_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
  """A `while`.

  Attributes:
    parent: Computation that it stands in.
    body: Computation that it repeats.
    trips: How often; None if the text does not say.
  """

  parent: str
  body: str
  trips: int | None


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program.

  Attributes:
    text: As `jax.stages.Compiled.as_text()` gives it.
  """

  text: str

  @functools.cached_property
  def computations(self) -> Mapping[str, Sequence[_hlo_text.Instruction]]:
    """Instructions by the name of their computation."""
    return _hlo_text.parse(self.text)

  @functools.cached_property
  def entry(self) -> str:
    """Name of the computation that the others are called from."""
    return _hlo_text.entry(self.text)

  @functools.cached_property
  def loops(self) -> Sequence[Loop]:
    """Every `while` of the program."""
    return [
        Loop(
            parent=name,
            body=_checked(x.attribute('body')),
            trips=self._trips(name, x),
        )
        for name, instructions in self.computations.items()
        for x in instructions
        if x.opcode == 'while'
    ]

  def with_trips(self, trips: int) -> 'Program':
    """Returns the program as if each of its loops ran so often."""
    program = Program(self.text)
    vars(program).update(
        computations=self.computations,
        entry=self.entry,
        loops=[dataclasses.replace(x, trips=trips) for x in self.loops],
    )
    return program

  @functools.cached_property
  def times(self) -> Mapping[str, int]:
    """How often each computation runs in a step; unknown loops once."""
    trips = {(x.parent, x.body): x.trips or 1 for x in self.loops}
    times: dict[str, int] = {}

    def visit(name: str, count: int) -> None:
      times[name] = times.get(name, 0) + count
      for instruction in self.computations.get(name, ()):
        for called in instruction.called:
          repeats = 1
          if instruction.opcode == 'while':
            repeats = trips[name, _checked(instruction.attribute('body'))]
          visit(called, count * repeats)

    visit(self.entry, 1)
    return times

  def _trips(self, parent: str, loop: _hlo_text.Instruction) -> int | None:
    """Returns how often a loop that counts up to a constant runs."""
    known = re.search(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)', loop.rest)
    if known is not None:
      return int(known[1])
    condition = _Values(self, _checked(loop.attribute('condition')))
    test = condition.root
    if test.opcode != 'compare' or 'direction=LT' not in test.rest:
      return None
    counter, limit = test.operands[:2]
    index, stop = condition.tuple_index(counter), condition.constant(limit)
    if index is None:
      return None
    inits = self._init(parent, loop)
    if stop is None:  # The limit is carried along.
      stop = inits(condition.tuple_index(limit))
    start = inits(index)
    step = self._step(_checked(loop.attribute('body')), index)
    if start is None or stop is None or not step:
      return None
    return max(0, math.ceil((stop - start) / step))

  def _init(self, parent: str, loop: _hlo_text.Instruction):
    """Returns what gives the first value of a counter, by its index."""
    values = _Values(self, parent)
    operands = values.by_name[loop.operands[0]]

    def init(index: int | None) -> int | None:
      if index is None or operands.opcode != 'tuple':
        return None
      return values.constant(operands.operands[index])

    return init

  def _step(self, body: str, index: int) -> int | None:
    """Returns what a body adds to the counter at `index`."""
    values = _Values(self, body)
    if values.root.opcode != 'tuple':
      return None
    added = values.source(values.root.operands[index])
    if added is None or added.opcode != 'add':
      return None
    constants = [values.constant(name) for name in added.operands]
    constants = [x for x in constants if x is not None]
    return constants[0] if len(constants) == 1 else None


class _Values:
  """Small numbers in a computation."""

  def __init__(self, program: Program, name: str):
    instructions = program.computations[name]
    self.by_name = {x.name: x for x in instructions}
    self.root = next(x for x in instructions if x.is_root)
    self._program = program

  def source(self, name: str) -> _hlo_text.Instruction | None:
    """Returns what a value is a copy of."""
    found = self.by_name.get(name)
    while found is not None and found.opcode in ('copy', 'bitcast', 'convert'):
      found = self.by_name.get(found.operands[0])
    return found

  def constant(self, name: str) -> int | None:
    """Returns the value of a constant integer."""
    found = self.source(name)
    if found is None or found.opcode != 'constant':
      return None
    match = re.match(r'(-?\d+)\)', found.rest)
    return int(match[1]) if match else None

  def tuple_index(self, name: str) -> int | None:
    """Returns which part of the loop's tuple a value is."""
    found = self.source(name)
    if found is None or found.opcode != 'get-tuple-element':
      return None
    index = re.search(r'index=(\d+)', found.rest)
    return int(index[1]) if index else None


def _checked(name: str | None) -> str:
  if name is None:
    raise ValueError('Not the text of an HLO module: a while has no body.')
  return name
