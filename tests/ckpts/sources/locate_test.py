"""From a path to a checkpoint, or to a message that says what is there."""

import re
import shutil

from etils import epath
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.ckpts.sources import _locate
from tests.lib import states


def _locate_it(path, **kwargs):
  return _locate.locate(path, who='T', **kwargs).path


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A Kauldron workdir with steps 3 and 12, whose final norms tell them."""
  path = epath.Path(tmp_path_factory.mktemp('run'))
  with kd.ckpts.Checkpointer(workdir=path, save_interval_steps=1) as ckpt:
    for step in (3, 12):
      state = states.make_state('Gemma4_E2B', seed=step)
      ckpt.save(state, step=step, force=True)
    ckpt.wait_until_finished()
  return path


@pytest.mark.parametrize('sub', ['', 'checkpoints'])
def test_last_step_is_the_default(workdir, sub):
  """Steps are numbers: 12 comes after 3."""
  found = _locate_it(workdir / sub)
  assert found == workdir / 'checkpoints' / 'ckpt_12' / 'default'
  assert _locate_it(workdir / sub, step=3).parent.name == 'ckpt_3'


@pytest.mark.parametrize('sub', ['ckpt_3', 'ckpt_3/default'])
def test_one_checkpoint_of_a_run(workdir, sub):
  found = _locate_it(workdir / 'checkpoints' / sub)
  assert found == workdir / 'checkpoints' / 'ckpt_3' / 'default'
  assert _locate_it(workdir / 'checkpoints' / sub, step=3) == found


@pytest.mark.parametrize('step', [3, 12])
def test_step_reaches_the_values(workdir, step):
  """`step=` of PartialLoad chooses whose values are restored."""
  state = states.make_state('Gemma4_E2B')
  out = g4.ckpts.PartialLoad(path=workdir, step=step).transform(state)
  want = states.make_state('Gemma4_E2B', seed=step)
  assert not states.differing(out.params, want.params)


def test_absent_step(workdir):
  with pytest.raises(ValueError, match=r'step=4 is not in .*: \[3, 12\]'):
    _locate_it(workdir, step=4)


def test_step_of_one_checkpoint(workdir):
  with pytest.raises(ValueError, match='step=12, but the path names step 3'):
    _locate_it(workdir / 'checkpoints' / 'ckpt_3', step=12)


def test_step_of_a_released_checkpoint(checkpoint):
  path, _ = checkpoint('Gemma4_E2B')
  with pytest.raises(ValueError, match='is one released checkpoint: drop `st'):
    _locate_it(path, step=3)


def test_relative_path(checkpoint, monkeypatch):
  path, _ = checkpoint('Gemma4_E2B')
  monkeypatch.chdir(path.parent)
  assert _locate_it(path.name) == path


def test_path_with_odd_characters(checkpoint, tmp_path):
  """Paths are no URLs."""
  path, params = checkpoint('Gemma4_E2B')
  odd = tmp_path / 'my ckpt 100%20#1?'
  shutil.copytree(path, odd)
  state = states.make_state('Gemma4_E2B')
  out = g4.ckpts.PartialLoad(path=odd).transform(state)
  assert not states.differing(out.params, params)


def test_nothing_at_the_path(checkpoint, tmp_path):
  """The message offers what is beside it."""
  path, _ = checkpoint('Gemma4_E2B')
  with pytest.raises(FileNotFoundError, match=r"Did you mean \['.*E2B-nested'"):
    _locate_it(path.parent / 'Gemma4_E2B-nestd')
  (tmp_path / 'abc').mkdir()
  with pytest.raises(FileNotFoundError, match=r"holds \['abc'\]"):
    _locate_it(tmp_path / 'x' / 'y')
  with pytest.raises(FileNotFoundError, match='it holds nothing'):
    _locate_it(tmp_path / 'abc')


def test_folder_of_checkpoints(checkpoint, tmp_path):
  """A folder that holds checkpoints says which."""
  path, _ = checkpoint('Gemma4_E2B')
  shutil.copytree(path, tmp_path / 'gemma4-e2b')
  with pytest.raises(FileNotFoundError, match=r"Did you mean .*'gemma4-e2b'"):
    _locate_it(tmp_path)


def test_workdir_without_checkpoints(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(FileNotFoundError, match='no checkpoint at .*nothing'):
    _locate_it(tmp_path)


def test_file(tmp_path):
  (tmp_path / 'a.npz').write_bytes(b'')
  with pytest.raises(ValueError, match='is a file; a checkpoint is a folder'):
    _locate_it(tmp_path / 'a.npz')


@pytest.mark.parametrize(
    'name', ['model.safetensors', 'model.safetensors.index.json']
)
def test_hugging_face(tmp_path, name):
  (tmp_path / name).write_bytes(b'')
  assert _locate_it(tmp_path) == tmp_path
  assert _locate_it(tmp_path / name) == tmp_path / name
  with pytest.raises(ValueError, match='is one of Hugging Face: drop `step=`'):
    _locate_it(tmp_path, step=3)


def test_interrupted_save(checkpoint, tmp_path):
  """A folder with Orbax's temporary name is half-written."""
  path, _ = checkpoint('Gemma4_E2B')
  name = 'gemma4.orbax-checkpoint-tmp-123'
  shutil.copytree(path, tmp_path / name)
  with pytest.raises(ValueError, match='is half-written'):
    _locate_it(tmp_path / name)
  with pytest.raises(FileNotFoundError, match=f'{name}, which is half-written'):
    _locate_it(tmp_path / 'gemma4')


def test_folder_without_metadata(checkpoint, tmp_path):
  """Orbax writes the metadata last."""
  path, _ = checkpoint('Gemma4_E2B')
  shutil.copytree(path, tmp_path / 'c')
  (tmp_path / 'c' / '_METADATA').unlink()
  with pytest.raises(ValueError, match='is half-written: it has no _METADATA'):
    _locate_it(tmp_path / 'c')


def test_items_that_others_name(workdir, tmp_path):
  """Complete, and not ours: the path of one of them is."""
  shutil.copytree(workdir, tmp_path / 'run')
  folder = tmp_path / 'run' / 'checkpoints'
  for step in folder.iterdir():
    (step / 'default').rename(step / 'params')
  named = folder / 'ckpt_12' / 'params'
  match = rf"has the items \['params'\].* Give the path of one: {named}\."
  for path in (tmp_path / 'run', folder, folder / 'ckpt_12'):
    with pytest.raises(ValueError, match=match):
      _locate_it(path)
  assert _locate_it(named) == named


def test_half_written_step(workdir, tmp_path, caplog):
  """The last complete step is the default; the half-written one is named."""
  shutil.copytree(workdir, tmp_path / 'run')
  folder = tmp_path / 'run' / 'checkpoints'
  (folder / 'ckpt_12' / 'default' / '_METADATA').unlink()
  assert _locate_it(tmp_path / 'run').parent.name == 'ckpt_3'
  assert re.search('takes step 3 of .*ckpt_12 has no default/_ME', caplog.text)
  with pytest.raises(ValueError, match=r'step=12 is half-written.*: \[3\]'):
    _locate_it(tmp_path / 'run', step=12)
  shutil.rmtree(folder / 'ckpt_3')
  with pytest.raises(ValueError, match=r"half-written: \['ckpt_12'\]"):
    _locate_it(tmp_path / 'run')
  (folder / 'ckpt_12').rename(folder / 'ckpt_12.orbax-checkpoint-tmp')
  with pytest.raises(ValueError, match=r'half-written: .*ckpt_12.orbax'):
    _locate_it(tmp_path / 'run')


def test_errors_leave_the_state_alone(tmp_path):
  state = states.make_state('Gemma4_E2B')
  with pytest.raises(FileNotFoundError, match='PartialLoad: no checkpoint at'):
    g4.ckpts.PartialLoad(path=tmp_path).transform(state)
  states.assert_usable(state)
  assert np.asarray(state.step) == 7
