"""Reads a compiled program's text: its computations and loops.

This module has all that we know of XLA's text format;
`tests/tpu/program/hlo_test.py` tests it on programs that XLA compiled.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
import re

_BITS = {'pred': 8, 'token': 0, 'bf16': 16, 'opaque': 0}

_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$')
# A line of an attribute, which may have several, can begin with brackets too.
_END = re.compile(r'^\}(,|$)')
_NAME = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = ')
_OPCODE = re.compile(r'\s*([\w\-]+)\(')
_CALLED = re.compile(
    r'(?:calls|to_apply|condition|body|true_computation|false_computation)'
    r'=%?([\w.\-]+)'
)
_CALLED_LIST = re.compile(
    r'(?:branch_computations|called_computations)=\{([^}]*)\}'
)
_KERNEL = 'custom_call_target="tpu_custom_call"'
_ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\]')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: Without `%`.
    shape: As text, layouts included.
    opcode: `'fusion'`, `'all-gather-start'`, ...
    rest: Operands and attributes.
    is_root: Whether it is what the computation returns.
  """

  name: str
  shape: str
  opcode: str
  rest: str
  is_root: bool

  @property
  def operands(self) -> Sequence[str]:
    """Names of the operands."""
    inside = self.rest[: _closing(self.rest)]
    return re.findall(r'%([\w.\-]+)', inside)

  @property
  def called(self) -> Sequence[str]:
    """Names of computations that it runs."""
    lists = _CALLED_LIST.findall(self.rest)
    return [
        *_CALLED.findall(self.rest),
        *(x.strip().lstrip('%') for names in lists for x in names.split(',')),
    ]

  @property
  def is_kernel(self) -> bool:
    """Whether it calls a kernel for TPUs."""
    return self.opcode == 'custom-call' and _KERNEL in self.rest

  def attribute(self, name: str) -> str | None:
    """`body=%name` as `'name'`."""
    match = re.search(rf'\b{name}=%?([\w.\-]+)', self.rest)
    return match[1] if match else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
  """A `while`.

  Attributes:
    parent: Computation that contains it.
    body: Computation that it repeats.
    trips: How often; None if unknown.
  """

  parent: str
  body: str
  trips: int | None


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program.

  Attributes:
    text: Result of `jax.stages.Compiled.as_text()`.
  """

  text: str

  @functools.cached_property
  def computations(self) -> Mapping[str, Sequence[Instruction]]:
    """Instructions by the name of their computation."""
    found, lines = {}, None
    for line in self.text.splitlines():
      header = _HEADER.match(line)
      if header is not None:
        lines = found.setdefault(header[2], [])
      elif _END.match(line) is not None:
        lines = None
      elif lines is not None:
        instruction = _instruction(line)
        if instruction is not None:
          lines.append(instruction)
    return found

  def text_of(self, name: str) -> str:
    """Returns a module of one computation, and of those that it calls.

    Reading a whole large program for each of its loops takes longer than
    compiling it.

    Args:
      name: The computation's name.
    """
    needed = self._reached(name)
    parts = [self._texts[x] for x in self._texts if x in needed and x != name]
    own = self._texts[name].removeprefix('ENTRY ')
    text = '\n\n'.join(['HloModule part', *parts, f'ENTRY {own}', ''])
    # A number in a table that is left out: XLA would warn of each.
    return re.sub(r' ?stack_frame_id=\d+', '', text)

  def _reached(self, name: str) -> set[str]:
    """Returns the names of a computation and of all that it calls."""
    found, rest = set(), [name]
    while rest:
      name = rest.pop()
      if name not in found:
        found.add(name)
        # Whatever the attribute that names it.
        names = re.findall(r'%([\w.\-]+)', self._texts[name])
        rest += [x for x in names if x in self._texts]
    return found

  @functools.cached_property
  def _texts(self) -> Mapping[str, str]:
    """The text of each computation."""
    found, lines = {}, []
    for line in self.text.splitlines():
      if _HEADER.match(line) is not None:
        lines = []
      lines.append(line)
      is_end = _END.match(line) is not None
      if is_end and (header := _HEADER.match(lines[0])):
        found[header[2]] = '\n'.join(lines)
    return found

  @functools.cached_property
  def entry(self) -> str:
    """Name of the computation that the others are called from."""
    for line in self.text.splitlines():
      header = _HEADER.match(line)
      if header is not None and header[1]:
        return header[2]
    raise ValueError('Not the text of an HLO module: it has no ENTRY.')

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
        stand_ins=self.stand_ins,
        loops=[dataclasses.replace(x, trips=trips) for x in self.loops],
    )
    return program

  @functools.cached_property
  def choices(self) -> Sequence[tuple[str, Instruction, str]]:
    """Conditionals that run a TPU kernel or its substitute.

    Each with the computation that it stands in, and the branch of the kernel.
    """
    found = []
    for name, instructions in self.computations.items():
      for x in instructions:
        if x.opcode == 'conditional':
          kernels = [branch for branch in x.called if self._has_kernel(branch)]
          if len(kernels) == 1:
            found.append((name, x, kernels[0]))
    return found

  def _has_kernel(self, name: str) -> bool:
    return any(
        x.is_kernel
        for reached in self._reached(name)
        for x in self.computations[reached]
    )

  @functools.cached_property
  def stand_ins(self) -> frozenset[str]:
    """Branches of choices that are not the kernel's: as if they never ran."""
    return frozenset(
        branch
        for _, x, kernel in self.choices
        for branch in x.called
        if branch != kernel
    )

  @functools.cached_property
  def times(self) -> Mapping[str, int]:
    """How often each computation runs in a step; unknown loops once."""
    trips = {(x.parent, x.body): x.trips or 1 for x in self.loops}
    times: dict[str, int] = {}

    def visit(name: str, count: int) -> None:
      times[name] = times.get(name, 0) + count
      for instruction in self.computations.get(name, ()):
        for called in instruction.called:
          if called in self.stand_ins:
            continue
          repeats = 1
          if instruction.opcode == 'while':
            repeats = trips[name, _checked(instruction.attribute('body'))]
          visit(called, count * repeats)

    visit(self.entry, 1)
    return times

  def _trips(self, parent: str, loop: Instruction) -> int | None:
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

  def _init(self, parent: str, loop: Instruction):
    """Returns the instruction of a counter's first value, by its index."""
    values = _Values(self, parent)
    operands = values.by_name[loop.operands[0]]

    def init(index: int | None) -> int | None:
      if index is None or operands.opcode != 'tuple':
        return None
      return values.constant(operands.operands[index])

    return init

  def _step(self, body: str, index: int) -> int | None:
    """Returns the increment of the counter at `index`."""
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

  def source(self, name: str) -> Instruction | None:
    """Returns the original of a copied value."""
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
    """Returns the index of a value in the loop's tuple."""
    found = self.source(name)
    if found is None or found.opcode != 'get-tuple-element':
      return None
    index = re.search(r'index=(\d+)', found.rest)
    return int(index[1]) if index else None


def shape_bytes(shape: str) -> int:
  """Returns the bytes of a shape, `'(f32[2,3]{1,0}, s32[])'`, all parts."""
  total = 0
  for dtype, dims in _ARRAY.findall(shape):
    bits = _BITS.get(dtype)
    if bits is None:
      width = re.search(r'\d+', dtype)
      if width is None:
        continue
      bits = int(width[0])
    size = math.prod(int(x) for x in dims.split(',') if x)
    total += math.ceil(size * bits / 8)
  return total


def _instruction(line: str) -> Instruction | None:
  name = _NAME.match(line)
  if name is None:
    return None
  rest = line[name.end() :]
  if rest.startswith('('):
    end = 1 + _closing(rest[1:])
    shape, rest = rest[: end + 1], rest[end + 1 :]
  else:
    shape, _, rest = rest.partition(' ')
  opcode = _OPCODE.match(rest)
  if opcode is None:
    return None
  return Instruction(
      name=name[1],
      shape=shape,
      opcode=opcode[1],
      rest=rest[opcode.end() :],
      is_root=line.lstrip().startswith('ROOT '),
  )


def _closing(text: str) -> int:
  """Returns where the bracket closes that is open before `text`."""
  depth = 1
  for match in re.finditer(r'[()]', text):
    depth += 1 if match[0] == '(' else -1
    if not depth:
      return match.start()
  return len(text)


def _checked(name: str | None) -> str:
  if name is None:
    raise ValueError('Not the text of an HLO module: a while has no body.')
  return name
