"""Every notebook runs, in a kernel of its own."""

import pathlib

import nbclient
import nbformat
import pytest

_COLABS = pathlib.Path(__file__).parent.parent / 'colabs'


def _read(name):
  return nbformat.read(_COLABS / name, as_version=4)


def _outputs(notebook):
  """Text of each code cell's result and printed lines."""
  texts = []
  for cell in notebook.cells:
    for output in cell.get('outputs', ()):
      texts.append(output.get('text', ''))
      texts.append(output.get('data', {}).get('text/plain', ''))
  return texts


@pytest.mark.parametrize('path', sorted(_COLABS.glob('*.ipynb')))
def test_is_committed_without_outputs(path):
  for cell in _read(path.name).cells:
    assert not cell.get('outputs') and not cell.get('execution_count')


def test_quickstart_learns_to_translate(tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  notebook = _read('quickstart.ipynb')
  for cell in notebook.cells:
    cell.source = cell.source.replace('/tmp/gemma4_lora_colab', str(tmp_path))
  nbclient.NotebookClient(notebook, timeout=600).execute()
  texts = _outputs(notebook)
  answers = [text for text in texts if text.endswith("<turn|>'")]
  assert answers == [
      "'The boy sleeps at home.<turn|>'",  # Before: an echo.
      "'Le garçon dort à la maison.<turn|>'",
  ]
  tables = [
      output.data['text/html']
      for cell in notebook.cells
      for output in cell.get('outputs', ())
      if 'text/html' in output.get('data', {})
  ]
  assert any('layer_*.attn.q_einsum.w' in table for table in tables)
