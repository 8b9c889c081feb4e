"""Regular expressions of files, matched in time that is bounded by their size.

`re` backtracks: `(.*)*x` may take it exponential time. This module follows all
paths at once (Thompson's construction), with the same result. Python's own
parser reads the expression.
"""

from collections.abc import Callable
from collections.abc import Iterable
import functools
import importlib
import re
from typing import Any

# Python's parser of expressions, which has these names since 3.11.
_parser: Any = importlib.import_module('re._parser')
_compiler: Any = importlib.import_module('re._compiler')
_constants: Any = importlib.import_module('re._constants')

# Nodes of an expression. Names of modules have some tens of characters.
_MOST_NODES = 20_000
_MOST_CACHED = 20_000
# Visits of nodes: about half a minute.
_MOST_WORK = 100_000_000
# Without any of these, `re` does not backtrack.
_CHOICES = frozenset('*+?{|(')
_LOOKS = (_constants.ASSERT, _constants.ASSERT_NOT)
_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT)
_CHARACTERS = (
    _constants.LITERAL,
    _constants.NOT_LITERAL,
    _constants.ANY,
    _constants.IN,
)

# A node: takes a character that fits a test, checks a condition at a position,
# or does nothing; and the nodes after it.
_Test = Callable[[str], bool]
_Condition = Callable[[str, int], bool]
_Node = tuple[_Test | None, _Condition | None, list[int]]


class Expressions:
  """Expressions of one file, with a common limit of work."""

  def __init__(self):
    self._matchers: dict[tuple[str, str, str], Callable[[str], bool]] = {}
    self._budget = [_MOST_WORK]

  def fits(
      self, pattern: str, text: str, *, before: str = '', behind: str = ''
  ) -> bool:
    """Whether an expression matches a whole text, as `re.fullmatch`.

    Args:
      pattern: An expression.
      text: A name.
      before: An expression of ours to put before it.
      behind: One to put after it.

    Raises:
      ValueError: See `add`; or it takes too long.
    """
    key = pattern, before, behind
    if key not in self._matchers:
      self.add(pattern, before=before, behind=behind)
    return self._matchers[key](text)

  def add(self, pattern: str, *, before: str = '', behind: str = '') -> None:
    """Checks that an expression can be matched; see `fits`.

    Raises:
      ValueError: It is not an expression, is too large, or has a back
        reference.
    """
    key = pattern, before, behind
    whole = f'{before}(?:{pattern}){behind}' if before or behind else pattern
    try:
      compiled = re.compile(whole)
      if not _CHOICES & {*pattern}:
        self._matchers[key] = lambda x: compiled.fullmatch(x) is not None
        return
      parsed = _parser.parse(whole)
      program = _Program(self._budget)
      program.start = program.add_all(parsed, parsed.state.flags, program.end)
      self._matchers[key] = program.fits
    except (re.error, OverflowError, RecursionError, MemoryError) as e:
      raise ValueError(
          f'is no regular expression: {e or "nested too deep"}'
      ) from e


class _Program:
  """Nodes; one is the end."""

  def __init__(self, budget: list[int]):
    self.nodes: list[_Node] = []
    self._budget = budget
    self._size = 0
    self.end = self._add(None, None, [])
    self.start = self.end
    self._has_conditions = False
    self._cache: dict[tuple[frozenset[int], str], frozenset[int]] = {}

  def fits(self, text: str) -> bool:
    """Whether it matches a whole text."""
    return len(text) in self.ends(text, 0)

  def ends(self, text: str, position: int) -> Iterable[int]:
    """Yields where a match that begins at a position may end."""
    here = self._closure([self.start], text, position)
    while here:
      if self.end in here:
        yield position
      if position == len(text):
        return
      here = self._step(here, text, position)
      position += 1

  def add_all(self, parsed: Any, flags: int, behind: int) -> int:
    """Adds the nodes of a parsed expression; returns the first node.

    Args:
      parsed: A sequence of items of `re`'s parser.
      flags: Flags of `re`.
      behind: The node that follows.
    """
    for op, value in reversed(list(parsed)):
      behind = self._add_one(op, value, flags, behind)
    return behind

  def _add_one(self, op: Any, value: Any, flags: int, behind: int) -> int:
    if op in _CHARACTERS:
      return self._add(_tester(op, value, flags), None, [behind])
    if op is _constants.SUBPATTERN:
      _, more, less, inner = value
      return self.add_all(inner, (flags | more) & ~less, behind)
    if op is _constants.BRANCH:
      firsts = [self.add_all(x, flags, behind) for x in value[1]]
      return self._add(None, None, firsts)
    if op in _REPEATS:
      least, most, inner = value
      return self._add_repeat(least, most, inner, flags, behind)
    if op is _constants.AT:
      self._has_conditions = True
      return self._add(None, functools.partial(_is_at, value, flags), [behind])
    if op in _LOOKS:
      self._has_conditions = True
      direction, inner = value
      look = self._look(inner, flags, direction)
      wanted = op is _constants.ASSERT
      return self._add(None, lambda t, i: look(t, i) == wanted, [behind])
    raise ValueError(
        f'has {str(op).lower()}, which g4.hf.load_peft does not match: it may'
        ' take time without end'
    )

  def _add_repeat(
      self, least: int, most: int, inner: Any, flags: int, behind: int
  ) -> int:
    if most is _constants.MAXREPEAT:
      loop = self._add(None, None, [behind])
      self.nodes[loop][2].append(self.add_all(inner, flags, loop))
      first = loop
    else:
      first = behind
      for _ in range(most - least):
        first = self._add(
            None, None, [behind, self.add_all(inner, flags, first)]
        )
    for _ in range(least):
      before = len(self.nodes)
      first = self.add_all(inner, flags, first)
      if len(self.nodes) == before:  # Repeats of nothing are nothing.
        break
    return first

  def _look(self, inner: Any, flags: int, direction: int) -> _Condition:
    """Returns a test whether an expression fits before or after a position."""
    program = _Program(self._budget)
    program.start = program.add_all(inner, flags, program.end)
    self._size = self._size + program._size
    self._check_size()
    width, _ = inner.getwidth()

    # Each position of a text is checked once, at any nesting.
    @functools.lru_cache(maxsize=_MOST_CACHED)
    def look(text, i):
      if direction > 0:
        return any(True for _ in program.ends(text, i))
      return i >= width and i in program.ends(text, i - width)

    return look

  def _add(
      self, test: _Test | None, condition: _Condition | None, then: list[int]
  ) -> int:
    self._size += 1
    self._check_size()
    self.nodes.append((test, condition, then))
    return len(self.nodes) - 1

  def _check_size(self) -> None:
    if self._size > _MOST_NODES:
      raise ValueError(f'is too large: it has more than {_MOST_NODES} parts')

  def _step(
      self, here: frozenset[int], text: str, position: int
  ) -> frozenset[int]:
    """Returns the nodes after one more character."""
    key = here, text[position]
    if key in self._cache:
      return self._cache[key]
    then = []
    for i in here:
      test = self.nodes[i][0]
      if test is not None and test(text[position]):
        then += self.nodes[i][2]
    found = self._closure(then, text, position + 1)
    if not self._has_conditions and len(self._cache) < _MOST_CACHED:
      self._cache[key] = found
    return found

  def _closure(
      self, todo: list[int], text: str, position: int
  ) -> frozenset[int]:
    """Returns all nodes that are reached without another character."""
    found = set()
    while todo:
      i = todo.pop()
      if i in found:
        continue
      found.add(i)
      test, condition, then = self.nodes[i]
      if test is None and (condition is None or condition(text, position)):
        todo += then
    self._budget[0] -= 1 + len(found)
    if self._budget[0] < 0:
      raise ValueError('takes too long to match')
    return frozenset(found)


def _tester(op: Any, value: Any, flags: int) -> _Test:
  """Returns whether a character fits, by `re`; each is tested once."""
  state = _parser.State()
  state.flags = flags
  one = _parser.SubPattern(state, [(op, value)])
  match = _compiler.compile(one, flags).fullmatch
  return functools.cache(lambda character: match(character) is not None)


def _is_at(where: Any, flags: int, text: str, i: int) -> bool:
  """Whether a position is a beginning, an end or a boundary."""
  lines = bool(flags & re.MULTILINE)
  if where is _constants.AT_BEGINNING_STRING:
    return i == 0
  if where is _constants.AT_END_STRING:
    return i == len(text)
  if where is _constants.AT_BEGINNING:
    return i == 0 or (lines and text[i - 1] == '\n')
  if where is _constants.AT_END:
    last = i == len(text) - 1
    return i == len(text) or (text[i] == '\n' and (lines or last))
  is_word = re.compile(r'\w', flags & re.ASCII).match
  before = i > 0 and is_word(text[i - 1]) is not None
  behind = i < len(text) and is_word(text[i]) is not None
  return (before != behind) == (where is _constants.AT_BOUNDARY)
