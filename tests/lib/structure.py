"""The package's structure, as its imports say it: modules, rooms and arrows.

Read from the source, so that nothing is imported. An import counts wherever it
stands: in a function, under `TYPE_CHECKING`, in a `konfig.imports()`.
"""

import ast
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import graphlib
import itertools
import pathlib


@dataclasses.dataclass(frozen=True)
class Package:
  """A package on disk.

  Attributes:
    root: Its folder.
  """

  root: pathlib.Path

  @functools.cached_property
  def files(self) -> dict[str, pathlib.Path]:
    """Files by the name of their module, as `gemma4_lora.nn._lora`."""
    files = {}
    for path in sorted(self.root.rglob('*.py')):
      parts = path.relative_to(self.root.parent).with_suffix('').parts
      files['.'.join(p for p in parts if p != '__init__')] = path
    return files

  @functools.cached_property
  def imported(self) -> dict[str, list[str]]:
    """Dotted names that each module imports."""
    return {name: list(_imported(path)) for name, path in self.files.items()}

  @functools.cached_property
  def imports(self) -> dict[str, set[str]]:
    """Modules of the package that each module imports."""
    return {
        name: set(filter(None, map(self._module, names))) - {name}
        for name, names in self.imported.items()
    }

  def room(self, module: str) -> str:
    """Returns the folder of a module, or itself if it stands in the root."""
    path = self.files[module].relative_to(self.root)
    return path.parent.as_posix() if path.parent.parts else path.stem

  def is_face(self, module: str) -> bool:
    return self.files[module].name == '__init__.py'

  def _module(self, name: str) -> str | None:
    """Returns the module that a dotted name is, or is a name of."""
    while name and name not in self.files:
      name = name.rpartition('.')[0]
    return name or None


def circles(package: Package) -> list[str]:
  """Returns a circle of modules that import each other, if there is one."""
  try:
    graphlib.TopologicalSorter(package.imports).prepare()
  except graphlib.CycleError as e:
    return [' <- '.join(e.args[1])]
  return []


def arrows_up(package: Package, rooms: Sequence[str]) -> list[str]:
  """Returns imports of what stands higher.

  The face of a folder, its `__init__`, stands above the folder's rooms: rooms
  above may import it, its own may not.

  Args:
    package: Where to look.
    rooms: All rooms, from the top down.
  """
  ranks = {room: i for i, room in enumerate(rooms)}

  def rank(module: str) -> float:
    room = package.room(module)
    if not package.is_face(module):
      return ranks[room]
    below = [ranks[x] for x in rooms if f'{x}/'.startswith(f'{room}/')]
    return min(below) - 0.5

  return [
      f'{module} -> {other}'
      for module, others in package.imports.items()
      for other in sorted(others)
      if package.room(module) != package.room(other)
      or package.is_face(module) != package.is_face(other)
      if rank(module) >= rank(other)
  ]


def unlisted(package: Package, rooms: Sequence[str]) -> set[str]:
  """Returns rooms that the list lacks, and the other way round."""
  there = {package.room(x) for x in package.files if x != package.root.name}
  return there ^ set(rooms)


def scattered(rooms: Sequence[str]) -> list[str]:
  """Returns folders whose rooms do not stand together in the list.

  Together, they make one room of the folder: with no arrow up between rooms,
  there is none between the folders of the root, and no circle.
  """
  folders = [x for x, _ in itertools.groupby(x.split('/')[0] for x in rooms)]
  return sorted({x for x in folders if folders.count(x) > 1})


def crowded(package: Package, *, most: int) -> dict[str, int]:
  """Returns folders with too many modules, with their number."""
  folders = [x.parent for x in package.files.values()]
  counts = {x.as_posix(): folders.count(x) for x in folders}
  return {name: count for name, count in counts.items() if count > most}


def namesakes(package: Package) -> dict[str, list[str]]:
  """Returns modules of one name in several rooms."""
  by_name: dict[str, list[str]] = {}
  for path in package.files.values():
    by_name.setdefault(path.stem, []).append(path.as_posix())
  by_name.pop('__init__', None)
  by_name.pop('__main__', None)
  return {name: paths for name, paths in by_name.items() if len(paths) > 1}


def imports_of_tests(package: Package) -> list[str]:
  """Returns imports of test modules, which only pytest may import."""
  return [
      f'{module} -> {other}'
      for module, others in package.imports.items()
      for other in sorted(others)
      if other.endswith('_test')
  ]


def private_imports(
    package: Package, prefix: str, *, allowed: Sequence[str]
) -> Mapping[str, list[str]]:
  """Returns private modules of another package that rooms import.

  Args:
    package: Where to look.
    prefix: The other package, as `'gemma.gm'`.
    allowed: Rooms that may.
  """
  found = {}
  for module, names in package.imported.items():
    names = [
        x
        for x in names
        if x.startswith(f'{prefix}.') and '._' in x.removeprefix(prefix)
    ]
    if names and package.room(module) not in allowed:
      found[module] = names
  return found


def _imported(path: pathlib.Path) -> Iterator[str]:
  """Yields the dotted names that a file imports, from wherever in it."""
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      # A relative import names no room: not written here.
      assert not node.level, f'{path}: a relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)
