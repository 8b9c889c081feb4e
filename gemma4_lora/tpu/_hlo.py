"""Reads a compiled program's text: its loops, and what devices exchange.

Only what is said here is known of XLA's text format; `tests/tpu/hlo_test.py`
holds it to programs that XLA compiled.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
import re

_BITS = {'pred': 8, 'token': 0, 'bf16': 16, 'opaque': 0}

# What `-start` of a kind returns beside the result, and what its bytes are.
KINDS = (
    'all-gather',
    'all-reduce',
    'reduce-scatter',
    'all-to-all',
    'ragged-all-to-all',
    'collective-permute',
    'collective-broadcast',
)

_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$')
_NAME = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = ')
_OPCODE = re.compile(r'\s*([\w\-]+)\(')
_CALLED = re.compile(
    r'(?:calls|to_apply|condition|body|true_computation|false_computation)'
    r'=%?([\w.\-]+)'
)
_CALLED_LIST = re.compile(
    r'(?:branch_computations|called_computations)=\{([^}]*)\}'
)
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

  def attribute(self, name: str) -> str | None:
    """`body=%name` as `'name'`."""
    match = re.search(rf'\b{name}=%?([\w.\-]+)', self.rest)
    return match[1] if match else None


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
  def computations(self) -> Mapping[str, Sequence[Instruction]]:
    """Instructions by the name of their computation."""
    found, lines = {}, None
    for line in self.text.splitlines():
      header = _HEADER.match(line)
      if header is not None:
        lines = found.setdefault(header[2], [])
      elif line.startswith('}'):
        lines = None
      elif lines is not None:
        instruction = _instruction(line)
        if instruction is not None:
          lines.append(instruction)
    return found

  def text_of(self, name: str) -> str:
    """Returns a module of one computation, and of those that it calls.

    To read all of a large program for each of its loops takes longer than to
    compile it.

    Args:
      name: Of the computation.
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
      if line.startswith('}') and (header := _HEADER.match(lines[0])):
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

  def collectives(self, num_devices: int) -> tuple[Collective, ...]:
    """Returns what devices exchange, by kind.

    Of the branches of a conditional, of which one runs, the most of each kind.

    Args:
      num_devices: That the program was compiled for.
    """
    totals = _Exchanges(self, num_devices).of(self.entry)
    return tuple(totals[kind] for kind in KINDS if kind in totals)

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


class _Exchanges:
  """What devices exchange in a computation and those that it calls."""

  def __init__(self, program: Program, num_devices: int):
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

  def _own(self, instruction: Instruction) -> dict[str, Collective]:
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


class _Values:
  """Small numbers in a computation."""

  def __init__(self, program: Program, name: str):
    instructions = program.computations[name]
    self.by_name = {x.name: x for x in instructions}
    self.root = next(x for x in instructions if x.is_root)
    self._program = program

  def source(self, name: str) -> Instruction | None:
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


def _bytes_of(kind: str, instruction: Instruction, group_size: int) -> int:
  """Bytes of the whole array; see `Collective.bytes`."""
  shape = instruction.shape
  if instruction.opcode.endswith('-start') and kind != 'all-reduce':
    shape = _result_of_start(shape)
  scale = group_size if kind == 'reduce-scatter' else 1
  return shape_bytes(shape) * scale


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


def _checked(name: str | None) -> str:
  if name is None:
    raise ValueError('Not the text of an HLO module: a while has no body.')
  return name
