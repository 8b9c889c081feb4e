"""Every notebook runs top to bottom."""

import importlib.util
import json
import os
import pathlib
import re

import jupyter_client
import nbclient
import nbformat
import pytest

_COLABS = pathlib.Path(__file__).parent.parent / 'colabs'
_BADGE = 'https://colab.research.google.com/assets/colab-badge.svg'
_NAMES = (
    'choose_targets',
    'lora_finetuning',
    'plan_a_tpu_run',
    'serve_with_peft',
)

_every_notebook = pytest.mark.parametrize('name', _NAMES)


def _read(name):
  return nbformat.read(_COLABS / f'{name}.ipynb', as_version=4)


def _code(name):
  """Sources of the code cells."""
  return [x.source for x in _read(name).cells if x.cell_type == 'code']


@pytest.fixture(name='kernel', scope='module')
def _kernel():
  """One process for all of them: a third of their time would be imports."""
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    # Notebooks take hundreds of steps, where tests take one: programs that LLVM
    # did not optimise would cost more than it takes to optimise them.
    flags = os.environ['XLA_FLAGS'] + ' --xla_backend_optimization_level=1'
    monkeypatch.setenv('XLA_FLAGS', flags)
    kernel = jupyter_client.KernelManager(kernel_name='python3')
    kernel.start_kernel()
  yield kernel
  kernel.shutdown_kernel(now=True)


@pytest.fixture(name='execute')
def _execute(kernel, tmp_path):
  """Returns what runs a notebook and gives what its cells show, by kind."""

  def execute(name):
    notebook = _read(name)
    for cell in notebook.cells:
      source = cell.source.replace('/tmp/gemma4_lora_colab', str(tmp_path))
      # Enough for pictures; what training learns is seen in `lora_finetuning`.
      cell.source = source.replace('num_train_steps=30', 'num_train_steps=4')
    # Nothing of the one before has a name.
    notebook.cells.insert(0, nbformat.v4.new_code_cell('%reset -f'))
    nbclient.NotebookClient(notebook, km=kernel, timeout=600).execute()
    shown = {}
    for cell in notebook.cells:
      for output in cell.get('outputs', ()):
        if output.get('name') == 'stdout':
          shown.setdefault('text/plain', []).append(output.text)
        for kind, data in output.get('data', {}).items():
          shown.setdefault(kind, []).append(data)
    return shown

  return execute


def test_all_are_tested():
  assert sorted(x.stem for x in _COLABS.glob('*.ipynb')) == list(_NAMES)


@_every_notebook
def test_is_committed_without_outputs_or_widgets(name):
  notebook = _read(name)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    assert not cell.get('outputs') and not cell.get('execution_count')
  text = (_COLABS / f'{name}.ipynb').read_text(encoding='utf-8')
  assert 'widget' not in json.dumps(json.loads(text)['metadata'])


@_every_notebook
def test_opens_in_colab_and_installs_there(name):
  """The badge is of this notebook, and the first cell installs the package."""
  notebook = _read(name)
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


def test_lora_finetuning(execute):
  """It learns to translate, and shows how."""
  shown = execute('lora_finetuning')
  before, after = [x for x in shown['text/plain'] if 'sleeps at home.' in x]
  assert "'The boy sleeps at home.': 'The boy sleeps at home.'" in before
  assert "'The boy sleeps at home.': 'Le garçon dort à la maison.'" in after
  assert len(shown['image/png']) == 2  # Losses, norms of the updates.
  tokens, table = shown['text/html']
  assert tokens.count('trained (green)') == 3
  assert 'layer_*.attn.q_einsum.w' in table


def test_lora_finetuning_of_e2b(monkeypatch, tmp_path):
  """The switch: the same cells make a run of the real model, without weights."""
  monkeypatch.chdir(tmp_path)
  namespace = {}
  for source in _code('lora_finetuning')[1:]:
    if 'init_state' in source:  # From here on, it takes a TPU.
      break
    source = source.replace("else 'tiny'", "else 'E2B'")
    source = re.sub(r'batch = next.*', '', source)
    source = re.sub(r'g4\.(data\.show|nn\.summary).*', '', source)
    exec(compile(source, 'lora_finetuning.ipynb', 'exec'), namespace)
  trainer = namespace['trainer']
  assert type(trainer.model.model).__name__ == 'Gemma4_E2B'
  assert trainer.model.config.embed_dim == 1536
  assert 'gemma4-e2b-it' in str(trainer.init_transform.wrapped.path)
  assert trainer.train_ds.name == 'mtnt/en-fr'
  assert trainer.train_ds.batch_size == 8


def test_choose_targets(execute):
  shown = execute('choose_targets')
  assert any("Did you mean 'attention'" in x for x in shown['text/plain'])
  default, some = shown['text/html']
  assert '26,333,184' in default
  assert 'not chosen by targets=' in some
  assert len(shown['image/png']) == 3  # Sizes, losses, norms of the updates.


def test_serve_with_peft(execute, tmp_path):
  """All but what needs PEFT, which says that it is not there."""
  shown = execute('serve_with_peft')
  assert any(
      'OK: all 49 projections are there' in x for x in shown['text/plain']
  )
  assert sorted(x.name for x in (tmp_path / 'serve' / 'peft').iterdir()) == [
      'adapter_config.json',
      'adapter_model.safetensors',
  ]
  assert (tmp_path / 'serve' / 'base' / 'config.json').exists()
  if importlib.util.find_spec('peft') is None:
    assert any('pip install torch' in x for x in shown['text/plain'])
    assert len(shown['image/png']) == 1  # Norms of the updates.


def test_plan_a_tpu_run(execute):
  shown = execute('plan_a_tpu_run')
  (plan,) = shown['text/html']
  assert '<svg' in plan and 'temporaries' in plan
  assert len(shown['image/png']) == 1  # Memory with and without logits.
  lines = ''.join(shown['text/plain'])
  assert (
      len(re.findall(r'(as it is|no logits) +fits +[\d.]+ GFLOP', lines)) == 2
  )
