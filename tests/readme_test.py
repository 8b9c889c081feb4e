"""What the READMEs say, run: the first page and those of the folders."""

import ast
import dataclasses
import pathlib
import re
import shlex
import shutil
import subprocess

import jax
import pytest

from gemma4_lora import g4
from gemma4_lora import tiny
from gemma4_lora.commands import _commands
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _sizes
from gemma4_lora.targets import _resolve
from tests.lib import shipped

_ROOT = pathlib.Path(__file__).parent.parent

# Every page that git has: a folder's own environments have READMEs of others.
_PAGES = {
    str(path.relative_to(_ROOT)): path.read_text(encoding='utf-8')
    for path in (
        _ROOT / 'README.md',
        *_ROOT.glob('configs/README.md'),
        *_ROOT.glob('colabs/README.md'),
        *sorted(_ROOT.glob('gemma4_lora/**/*.md')),
        *sorted(_ROOT.glob('tests/**/README.md')),
    )
}
_each_page = pytest.mark.parametrize('page', _PAGES)


# Commands, by words in them, and what runs them: `.ci/run`, or a file of tests.
# None is for a command that needs something that is missing here.
_RUN_BY = {
    'kauldron.main --cfg=configs/quickstart.py': '.ci/run',
    'uv run --extra dev pytest': '.ci/run',
    'python -m tests.lib.notebooks': 'tests/colabs_test.py',
    'python -m tests.benchmarks': 'tests/benchmarks/table_test.py',
    'python -m gemma4_lora doctor': 'tests/doctor/versions_test.py',
    'python -m gemma4_lora show': 'tests/data/reports/show_command_test.py',
    'python -m gemma4_lora new': 'tests/new_config/new_config_test.py',
    'python -m gemma4_lora plan': 'tests/jobs/train_test.py',
    'python -m gemma4_lora train': 'tests/jobs/train_test.py',
    'xmanager launch': 'tests/jobs/xm_test.py',
    'python -m gemma4_lora': 'tests/main_test.py',
    'python -m pytest tests/': None,  # One file of all tests.
    'bash .ci/run': None,  # It runs this.
    'docker build': None,  # Docker, and a registry.
    'pip install "gemma4_lora': None,  # An address of this repository.
    'git clone': None,  # The same.
    'uv venv': None,  # It downloads a Python.
    'tests/platforms/': None,  # Environments of their own.
    'tests/lib/peft_reference.py': None,  # PyTorch.
    'tests/lib/vocabulary_reference.py': None,  # A source package.
    'tests.lib.peft_cases': None,  # What the one above wrote.
}


def _blocks(language, page):
  return re.findall(rf'^```{language}\n(.*?)^```', _PAGES[page], re.M | re.S)


def _shell(*pages):
  return [
      command
      for page in pages or _PAGES
      for block in _blocks('sh', page)
      for command in block.splitlines()
      if command
  ]


def _ours(command):
  """Arguments of `python -m gemma4_lora`; None if it is another command."""
  words = shlex.split(command.replace('…', 'x').partition(' > ')[0])
  if words[:3] != ['python', '-m', 'gemma4_lora']:
    return None
  return words[3:]


def test_first_page_is_short():
  """What is long belongs to the page of its folder."""
  assert len(_PAGES['README.md'].splitlines()) <= 300


@pytest.mark.parametrize('page', [x for x in _PAGES if _blocks('python', x)])
def test_python_blocks_run(page, capsys):
  """In one namespace per page, in their order, as a reader would paste them."""
  namespace = {}
  for block in _blocks('python', page):
    exec(compile(block, page, 'exec'), namespace)
  # A block without a language, under a block of Python, is what that printed, up
  # to its ellipsis.
  printed = capsys.readouterr().out
  for shown in re.findall(
      r'^```python\n[^`]*^```\n[^`]*^```\n(.*?)^(?:…|```)',
      _PAGES[page],
      re.M | re.S,
  ):
    assert shown in printed


@pytest.mark.parametrize(
    'task', ['ChatTask', 'PreferenceTask', 'UnpairedTask', 'TextTask']
)
def test_page_of_data_has_each_argument(task):
  page = _PAGES['gemma4_lora/data/README.md']
  names = [x.name for x in dataclasses.fields(getattr(g4.data, task)) if x.init]
  assert [x for x in names if not re.search(rf'\b{x}\b', page)] == []


def test_diff_of_gemmas_config_makes_a_config_of_gemma_4(tmp_path):
  """Every line that it changes stands in the config as in gemma's own."""
  config = tmp_path / 'my_config.py'
  shutil.copy(_ROOT / 'tests/testdata/gemma3_lora_config.py', config)
  (diff,) = _blocks('diff', 'README.md')
  subprocess.run(
      ['git', 'apply', '-'], input=diff, text=True, cwd=tmp_path, check=True
  )

  trainer = shipped.resolved(
      tiny.shrink(shipped.config(config)), tmp_path / 'workdir'
  )
  assert isinstance(trainer.checkpointer, g4.ckpts.LoRACheckpointer)
  # Nothing is compiled: model, batch, losses and optimizer fit each other.
  batch = next(iter(trainer.train_ds))
  state = jax.eval_shape(lambda: trainer.init_state(skip_transforms=True))
  step = trainer.trainstep.step.eval_shape(trainer.trainstep, state, batch)
  assert jax.tree.leaves(step)
  assert '<|turn>user' in g4.testing.Gemma4Tokenizer().decode(batch['input'][0])


def test_ci_runs_the_readmes_commands():
  """`.ci/run` looks each up by the words that it is known by."""
  words = _words_of_ci()
  assert len(words) == 2
  for known_by in words:
    assert len([c for c in _shell('README.md') if known_by in c]) == 1


@pytest.mark.parametrize('command', _shell())
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


@pytest.mark.parametrize('command', [c for c in _shell() if _ours(c)])
def test_our_commands_have_these_options(command):
  """Options of a config are tested by `configs_test`."""
  name, *args = _ours(command)
  args = args[name == 'new' :]  # The file that it writes.
  known = {
      option
      for param in _commands.COMMANDS[name].load().params
      for option in (*param.opts, *param.secondary_opts)
  }
  for arg in args:
    option = arg.partition('=')[0]
    assert option in known or option.startswith('--cfg.'), arg


@pytest.mark.parametrize(
    'command', [c for c in _shell() if _ours(c) and 'vertex' in _ours(c)]
)
def test_jobs_of_the_readme(command, run_command, monkeypatch):
  """As they stand; but the planner, which takes minutes, is not asked."""
  monkeypatch.chdir(_ROOT)
  done = run_command(*_ours(command), '--noplan')
  assert done.returncode == 0, done.stderr
  assert ('FROM ' if '--dockerfile' in command else 'ct6e-standard-1t') in (
      done.stdout
  )


@_each_page
def test_files_that_it_links_to_are_there(page):
  for link in re.findall(r'\]\((?!http)([^)]+)\)', _PAGES[page]):
    file, _, heading = link.partition('#')
    path = (_ROOT / page).parent / file if file else _ROOT / page
    assert path.exists(), link
    if heading:
      assert heading in _anchors(path.read_text(encoding='utf-8')), link


def _anchors(text):
  """Returns the anchor of each heading, as GitHub makes them."""
  return {
      re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-')
      for heading in re.findall(r'^#+ (.*)$', text, re.M)
  }


def _count(name, target):
  """Trainable parameters as the README's table prints them."""
  size = next(x for x in _sizes.SIZES if x.name == f'Gemma4_{name}')
  model = size.cls(text_only=False)
  rows = _linears.linears(model.config)
  try:
    adapted = _resolve.resolve([g4.targets.Rule(target)], rows, rank=16)
  except ValueError:  # The model has none.
    return '–'
  return f'{sum(linear.num_params for linear in adapted):,}'


def test_table_of_trainable_parameters():
  page = _PAGES['gemma4_lora/targets/README.md']
  table = re.search(r'^\| `targets=` (.*)\n\|[-|]+\n((\|.*\n)+)', page, re.M)
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
      r'^\| message \| what to do \|\n\|[-|]+\n((?:\|.*\n)+)',
      _PAGES['gemma4_lora/README.md'],
      re.M,
  )
  return [line.split(' | ')[0].strip('| ')[1:-1] for line in table.splitlines()]


def test_messages_in_the_table_are_those_of_the_package():
  texts = list(_texts())
  messages = _messages()
  assert len(messages) > 15
  for message in messages:
    pattern = '.*'.join(map(re.escape, message.split('…')))
    assert any(re.search(pattern, text) for text in texts), message
