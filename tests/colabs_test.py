"""Every notebook runs top to bottom, and shows what is committed."""

import importlib.util
import json
import pathlib
import re

import nbformat
import pytest

from gemma4_lora import g4
from tests.lib import notebooks

_BADGE = 'https://colab.research.google.com/assets/colab-badge.svg'
# Enough for pictures. `python -m tests.lib.notebooks --check` trains them to the end.
_FEW_STEPS = 4
# They have a test of their own.
_OTHERS = {'dpo', 'lora_finetuning', 'serve_with_peft'}

_every_notebook = pytest.mark.parametrize('name', notebooks.names())


def _code(name):
  """Sources of the code cells."""
  cells = notebooks.read(name).cells
  return [x.source for x in cells if x.cell_type == 'code']


@pytest.fixture(name='kernel', scope='module')
def _kernel():
  with notebooks.kernel() as kernel:
    yield kernel


@_every_notebook
def test_is_committed_with_outputs_of_no_machine(name):
  """No error, red text, widget or path of the machine that ran it."""
  notebook = notebooks.read(name)
  nbformat.validate(notebook)
  cells = [x for x in notebook.cells if x.cell_type == 'code']
  assert [x.execution_count for x in cells] == list(range(1, len(cells) + 1))
  outputs = [x for cell in cells for x in cell.outputs]
  assert not [x for x in outputs if x.output_type == 'error']
  assert not [x for x in outputs if x.get('name') == 'stderr']
  assert any('image/png' in x.get('data', {}) for x in outputs)
  texts = ' '.join(
      text
      for x in outputs
      for kind, text in {'': x.get('text', ''), **x.get('data', {})}.items()
      if not kind.startswith('image/')
  )
  assert str(pathlib.Path.home()) not in texts and '/tmp/tmp' not in texts
  metadata = [notebook.metadata, *(x.metadata for x in notebook.cells)]
  assert not re.search('widget|execution|time', json.dumps(metadata))


@_every_notebook
def test_opens_in_colab_and_installs_there(name):
  """The badge is of this notebook, and the first cell installs the package."""
  notebook = notebooks.read(name)
  badges = re.findall(
      rf'\[!\[Open in Colab\]\({_BADGE}\)\]\((.*?)\)', notebook.cells[0].source
  )
  assert [
      re.sub(r'/github/[^/]+/', '/github/OWNER/', link) for link in badges
  ] == [
      'https://colab.research.google.com/github/OWNER/gemma4_lora/blob/main/'
      f'colabs/{name}.ipynb'
  ]
  install = _code(name)[0]
  assert "find_spec('gemma4_lora') is None" in install
  assert '%pip install' in install


@_every_notebook
def test_the_install_says_when_to_restart(name, tmp_path, monkeypatch):
  """If it replaced what this process has imported; here: numpy."""
  folder = tmp_path / 'numpy-99.dist-info'
  folder.mkdir()
  (folder / 'METADATA').write_text('Name: numpy\nVersion: 99\n')
  source = re.sub('%pip .*', 'install()', _code(name)[0])
  source = source.replace("importlib.util.find_spec('gemma4_lora')", 'None')
  exec(source, {'install': lambda: None})
  match = '^numpy replaced, .* Restart session'
  with pytest.raises(RuntimeError, match=match):
    exec(source, {'install': lambda: monkeypatch.syspath_prepend(tmp_path)})


@pytest.fixture(name='check')
def _check(kernel, tmp_path):
  """Returns what executes a notebook, and compares it with the committed one."""

  def check(name, steps=_FEW_STEPS):
    notebook = notebooks.execute(
        name, kernel=kernel, folder=tmp_path, steps=steps
    )
    shown, committed = (
        notebooks.shown(x, learnt=False)
        for x in (notebook, notebooks.read(name))
    )
    assert shown == committed
    return notebook

  return check


@pytest.mark.parametrize('name', sorted({*notebooks.names()} - _OTHERS))
def test_shows_what_is_committed(name, check):
  """But for numbers, and for what a model says that is trained more."""
  check(name)


def test_lora_finetuning(check, tmp_path):
  """It learns, within few steps."""
  check('lora_finetuning', steps=40)
  losses = g4.train.curves(tmp_path / 'tiny' / 'run')['train']
  first, *_, last = losses['losses/xentropy'].values()
  assert first > 3 and last < 1


def test_serve_with_peft(check, tmp_path):
  if importlib.util.find_spec('peft'):
    pytest.skip('What is committed is of an environment without PEFT.')
  check('serve_with_peft')
  assert sorted(x.name for x in (tmp_path / 'serve' / 'peft').iterdir()) == [
      'adapter_config.json',
      'adapter_model.safetensors',
  ]


def test_dpo_runs_a_second_time(check, tmp_path):
  """In the same folder: it resumes, and shows the curve of all of the run."""
  check('dpo')
  notebook = check('dpo', steps=_FEW_STEPS + 1)
  texts = [
      output.get('text', '')
      for cell in notebook.cells
      for output in cell.get('outputs', ())
  ]
  start = f'Starting training loop at step {_FEW_STEPS}\n'
  assert any(start in text for text in texts)
  curves = g4.train.curves(tmp_path / 'dpo' / 'tiny' / 'run')
  assert min(curves['train']['losses/dpo']) == 0


def test_lora_finetuning_of_e2b(tmp_path):
  """The switch: the same cells make a run of the real model, without weights."""
  namespace = {}
  for source in _code('lora_finetuning')[1:]:
    if 'init_state' in source:  # From here on, it takes a TPU.
      break
    source = source.replace(notebooks.FOLDER, str(tmp_path))
    source = re.sub(r'MODEL = next.*', "MODEL = 'E2B in 4 bits'", source)
    # The tiny one has the same names: Gemma's has to be downloaded.
    source = source.replace('gm.text.Gemma', 'g4.testing.Gemma')
    exec(compile(source, 'lora_finetuning.ipynb', 'exec'), namespace)
  trainer = namespace['trainer']
  assert type(trainer.model.model).__name__ == 'Gemma4_E2B'
  assert trainer.model.config.embed_dim == 1536
  assert trainer.model.quantize
  assert 'gemma4-e2b-it' in str(trainer.init_transform.wrapped.path)
  assert trainer.train_ds.batch_size == 8
