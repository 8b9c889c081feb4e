"""What the README says, run."""

import ast
import pathlib
import re
import shlex

from absl import flags
from gemma import gm
import pytest

from gemma4_lora import __main__ as main
from gemma4_lora import g4
from gemma4_lora.gemma4 import _linears
from gemma4_lora.targets import _resolve

_ROOT = pathlib.Path(__file__).parent.parent
_README = (_ROOT / 'README.md').read_text()


# Commands, by words in them, and what runs them: `.ci/run`, or a file of tests.
# None is for a command that needs something that is missing here.
_RUN_BY = {
    'kauldron.main --cfg=configs/quickstart.py': '.ci/run',
    'uv run --extra dev pytest': '.ci/run',
    'python -m tests.benchmarks': 'tests/benchmarks/table_test.py',
    'python -m gemma4_lora doctor': 'tests/doctor/versions_test.py',
    'python -m gemma4_lora plan': 'tests/jobs/train_test.py',
    'python -m gemma4_lora train': 'tests/jobs/train_test.py',
    'xmanager launch': 'tests/jobs/xm_test.py',
    'python -m gemma4_lora': 'tests/main_test.py',
    'python -m pytest tests/': None,  # One file of all tests.
    'bash .ci/run': None,  # It runs this.
    'docker build': None,  # Docker, and a registry.
    'pip install "gemma4_lora': None,  # An address of this repository.
    'git clone': None,  # The same.
}


def _blocks(language):
  return re.findall(rf'^```{language}\n(.*?)^```', _README, re.M | re.S)


def _commands():
  return [c for block in _blocks('sh') for c in block.splitlines() if c]


def _ours(command):
  """Arguments of `python -m gemma4_lora`; None if it is another command."""
  words = shlex.split(command.replace('…', 'x').partition(' > ')[0])
  if words[:3] != ['python', '-m', 'gemma4_lora']:
    return None
  return words[3:]


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
  words = _words_of_ci()
  assert len(words) == 2
  for known_by in words:
    assert len([c for c in _commands() if known_by in c]) == 1


@pytest.mark.parametrize('command', _commands())
def test_each_command_is_run(command):
  """By CI or a test, which names it; configs by `configs_test`."""
  for path in re.findall(r'(?:configs|tests)/\S+\.py', command):
    assert (_ROOT / path).exists()
  known = [by for words, by in _RUN_BY.items() if words in command]
  if not known:
    assert 'python -m kauldron.main --cfg=configs/' in command, 'What runs it?'
  elif known[0] == '.ci/run':
    assert any(words in command for words in _words_of_ci())
  elif known[0]:
    texts = _literals(_ROOT / known[0])
    assert _ours(command) is None or _ours(command)[0] in texts


def _words_of_ci():
  ci = (_ROOT / '.ci' / 'run').read_text()
  return re.findall(r'\$\(readme "(.*)"\)', ci)


def _literals(path):
  """Every text in a file that stands alone, as arguments of commands do."""
  return {
      node.value
      for node in ast.walk(ast.parse(path.read_text()))
      if isinstance(node, ast.Constant)
  }


@pytest.mark.parametrize(
    'command', [c for c in _commands() if _ours(c) and _ours(c)[0] != 'train']
)
def test_our_commands_have_these_flags(command):
  """`train` has Kauldron's."""
  args = _ours(command)
  assert args[0] in main._COMMANDS
  for arg in args[1:]:
    name = arg.removeprefix('--').partition('=')[0].partition('.')[0]
    assert name in flags.FLAGS or name.removeprefix('no') in flags.FLAGS, arg


@pytest.mark.parametrize(
    'command', [c for c in _commands() if _ours(c) and 'vertex' in _ours(c)]
)
def test_jobs_of_the_readme(command, run_command, monkeypatch):
  """As they stand; but the planner, which takes minutes, is not asked."""
  monkeypatch.chdir(_ROOT)
  done = run_command(*_ours(command), '--noplan')
  assert done.returncode == 0, done.stderr
  assert ('FROM ' if '--dockerfile' in command else 'ct6e-standard-1t') in (
      done.stdout
  )


def test_files_that_it_links_to_are_there():
  for link in re.findall(r'\]\((?!http)([^)]+)\)', _README):
    assert (_ROOT / link).exists(), link


def _count(name, target):
  """Trainable parameters as the README's table prints them."""
  model = getattr(gm.nn, f'Gemma4_{name}')(text_only=False)
  rows = _linears.linears(model.config)
  try:
    adapted = _resolve.resolve([g4.targets.Rule(target)], rows, rank=16)
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


def _texts():
  """Every text in the package's source; `…` is what a message fills in."""
  for path in (_ROOT / 'gemma4_lora').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.JoinedStr):
        yield ''.join(
            part.value if isinstance(part, ast.Constant) else '…'
            for part in node.values
        )
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def _messages():
  (table,) = re.findall(
      r'^\| message \| what to do \|\n\|[-|]+\n((?:\|.*\n)+)', _README, re.M
  )
  return [line.split(' | ')[0].strip('| ')[1:-1] for line in table.splitlines()]


def test_messages_in_the_table_are_those_of_the_package():
  texts = list(_texts())
  messages = _messages()
  assert len(messages) > 15
  for message in messages:
    pattern = '.*'.join(map(re.escape, message.split('…')))
    assert any(re.search(pattern, text) for text in texts), message
