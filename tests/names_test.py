"""Each public name and path that docs, errors and configs give exists.

Read from the faces' sources: importing them would import jax.
"""

import ast
import pathlib
import re

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_PACKAGE = _ROOT / 'gemma4_lora'
# `g4.nn.LoRA`, `g4.nn`; and neither `gemma4_lora.g4` nor `g4.py`.
_NAME = re.compile(r'(?<![\w./])g4\.(?!py\b)([a-z]+)(?:\.([A-Za-z]\w*))?')
# `tests/nn/lora_test.py`, from this repository's root.
_PATH = re.compile(
    r'(?<![\w./-])((?:colabs|configs|gemma4_lora|tests)/[\w/.-]+'
    r'\.(?:ipynb|jsonl?|md|py))\b'
)


def _imported(path: pathlib.Path) -> set[str]:
  return {
      alias.asname or alias.name
      for node in ast.walk(ast.parse(path.read_text()))
      if isinstance(node, ast.ImportFrom)
      for alias in node.names
  }


_G4 = _PACKAGE / 'g4.py'
_PUBLIC = {
    name: _imported(_PACKAGE / name / '__init__.py')
    for name in _imported(_G4) - {'epy', '_epy'}
}
# Their faces take all names of a module that makes a class for each size.
_SIZES = (_PACKAGE / 'gemma4' / '_sizes.py').read_text()
_PUBLIC['testing'] |= {
    f'{name}{end}'
    for name in re.findall(r"\bname='(Gemma4_\w+)'", _SIZES)
    for end in ('', '_Images')
}
_PUBLIC['nn'] |= set(
    re.findall(r"\bname='(Gemma4_\w+)',\s+namespace='g4\.nn'", _SIZES)
)


def _unknown(text: str) -> set[str]:
  """Returns names of `g4` that there are not."""
  return {
      match.group()
      for match in _NAME.finditer(text)
      if match[1] not in _PUBLIC
      or match[2] is not None
      and match[2] not in _PUBLIC[match[1]]
  }


def _texts() -> list[pathlib.Path]:
  suffixes = ('.py', '.md', '.ipynb')
  folders = (_PACKAGE, _ROOT / 'configs', _ROOT / 'colabs')
  files = [x for folder in folders for x in folder.rglob('*')]
  return [x for x in (*files, *_ROOT.glob('*.md')) if x.suffix in suffixes]


def _listed(path: pathlib.Path) -> set[str]:
  """Returns the texts of `__all__`; a star there takes a module's own."""
  (names,) = [
      node.value
      for node in ast.parse(path.read_text()).body
      if isinstance(node, ast.Assign) and node.targets[0].id == '__all__'
  ]
  return {x.value for x in names.elts if isinstance(x, ast.Constant)}


@pytest.mark.parametrize('namespace', sorted(_PUBLIC))
def test_public_names_are_listed(namespace):
  """`help` shows what `__all__` lists, and type checkers take that alone."""
  path = _PACKAGE / namespace / '__init__.py'
  imported = {x for x in _imported(path) if x != '*' and not x.startswith('_')}
  assert _listed(path) == imported - {'Any', 'Callable'}


def test_namespaces_are_listed():
  documented = re.findall(r'^\| `g4\.(\w+)` \|', _G4.read_text(), re.M)
  assert sorted(documented) == sorted(_PUBLIC)


def test_each_name_of_g4_that_is_written_exists():
  unknown = {
      str(x): found for x in _texts() if (found := _unknown(x.read_text()))
  }
  assert unknown == {}


def test_each_path_that_is_written_exists():
  files = (
      *_texts(),
      _ROOT / 'pyproject.toml',
      _ROOT / 'tests/testdata/README.md',
  )
  missing = [
      f'{file}: {path}'
      for file in files
      for path in _PATH.findall(file.read_text())
      if not (_ROOT / path).exists()
  ]
  assert missing == []


@pytest.mark.parametrize(
    'text',
    ['as `g4.testing.Tokenizer`', 'g4.nm.LoRA(rank=4)', "'g4.nn.Lora: no'"],
)
def test_a_name_that_is_none_is_seen(text):
  assert _unknown(text)


@pytest.mark.parametrize(
    'text',
    ['g4.nn.LoRA(rank=4)', 'of `g4.nn`.', 'gemma4_lora.g4:x.y', 'g4.py'],
)
def test_others_are_left_alone(text):
  assert not _unknown(text)
