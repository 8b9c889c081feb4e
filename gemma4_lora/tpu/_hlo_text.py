"""XLA's text format: computations, their instructions, the bytes of shapes.

Only what is said here is known of it; `tests/tpu/` holds it to programs that
XLA compiled.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import re

_BITS = {'pred': 8, 'token': 0, 'bf16': 16, 'opaque': 0}

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


def parse(text: str) -> Mapping[str, Sequence[Instruction]]:
  """Returns the instructions of a program by the name of their computation.

  Args:
    text: As `jax.stages.Compiled.as_text()` gives it.
  """
  found, lines = {}, None
  for line in text.splitlines():
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


def entry(text: str) -> str:
  """Returns the name of the computation that the others are called from.

  Raises:
    ValueError: It is not such a text.
  """
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header is not None and header[1]:
      return header[2]
  raise ValueError('Not the text of an HLO module: it has no ENTRY.')


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
