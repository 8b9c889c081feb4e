"""What the README says, run."""

import pathlib
import re

from gemma import gm

from gemma4_lora import _linears
from gemma4_lora import g4

_ROOT = pathlib.Path(__file__).parent.parent
_README = (_ROOT / 'README.md').read_text()


def _blocks(language):
  return re.findall(rf'^```{language}\n(.*?)^```', _README, re.M | re.S)


def test_python_blocks_run(capsys):
  """In one namespace, in their order, as a reader would paste them."""
  namespace = {}
  for block in _blocks('python'):
    exec(compile(block, 'README.md', 'exec'), namespace)
  # The table under the first block is what it printed, up to its ellipsis.
  (table,) = re.findall(r'^```\n(projection.*?)^…', _README, re.M | re.S)
  assert table in capsys.readouterr().out


def test_ci_runs_the_readmes_commands():
  """`.ci/run` looks each up by the words that it is known by."""
  ci = (_ROOT / '.ci' / 'run').read_text()
  words = re.findall(r'\$\(readme "(.*)"\)', ci)
  commands = [c for block in _blocks('sh') for c in block.splitlines()]
  assert len(words) == 2
  for known_by in words:
    assert len([c for c in commands if known_by in c]) == 1


def test_files_that_it_links_to_are_there():
  for link in re.findall(r'\]\((?!http)([^)]+)\)', _README):
    assert (_ROOT / link).exists(), link


def _count(name, target):
  """Trainable parameters as the README's table prints them."""
  model = getattr(gm.nn, f'Gemma4_{name}')(text_only=False)
  rows = _linears.linears(model.config)
  try:
    adapted = g4.targets.resolve([g4.targets.Rule(target)], rows, rank=16)
  except ValueError:  # The model has none.
    return '–'
  return f'{sum(linear.num_params for linear in adapted):,}'


def test_table_of_trainable_parameters():
  table = re.search(r'^\| `targets=` (.*)\n\|[-|]+\n((\|.*\n)+)', _README, re.M)
  assert table
  names = table[1].strip('| ').split(' | ')
  for line in table[2].splitlines():
    target, *counts = line.strip('| ').split(' | ')
    target = target.split("'")[1]
    assert counts == [_count(name, target) for name in names], target
