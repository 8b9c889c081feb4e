"""The largest array of a checkpoint is read while the model is traced."""

import math
import shutil
import threading

from etils import epath
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.ckpts import _requests
from gemma4_lora.ckpts.sources import _ahead
from gemma4_lora.ckpts.sources import _stream
from gemma4_lora.hf.weights import _tensor_leaf
from tests.lib import hf_reference
from tests.lib import states
from tests.lib import training


@pytest.fixture
def reads(monkeypatch):
  """Sizes of the arrays that are read: `(ahead, by the restore)`."""
  sizes = ([], [])
  for cls in (_stream.Streamed, _tensor_leaf.TensorLeaf):
    original = cls.begin

    def begin(self, *args, original=original):
      load = original(self, *args)

      def read():
        is_ahead = threading.current_thread().name.startswith(_ahead.THREAD)
        sizes[0 if is_ahead else 1].append(math.prod(self.shape))
        return load()

      return read

    monkeypatch.setattr(cls, 'begin', begin)
  return sizes


def _trainer(path, model, workdir, **kwargs):
  return training.make_trainer(
      model,
      workdir,
      num_train_steps=1,
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=g4.ckpts.PartialLoad(path=path, **kwargs)
      ),
  )


def _orbax(checkpoint):
  return (*checkpoint('Gemma4_31B'), states.model('Gemma4_31B'))


def _safetensors(checkpoint):
  del checkpoint
  ref = hf_reference.load('dense')
  return hf_reference.TESTDATA / 'dense', ref.params, ref.model


@pytest.mark.parametrize('written', [_orbax, _safetensors])
def test_init_reads_the_largest_ahead_and_nothing_twice(
    written, checkpoint, tmp_path, reads
):
  path, params, base = written(checkpoint)
  model = g4.nn.LoRA(rank=2, model=base)
  got = training.flat(_trainer(path, model, tmp_path).init_state().params)
  want = training.flat(params)
  for name, value in want.items():
    np.testing.assert_array_equal(got[name], value, name)
  (ahead,), rest = reads
  assert ahead == max(x.size for x in want.values()) >= max(rest)
  assert ahead + sum(rest) <= sum(x.size for x in want.values())


@pytest.mark.parametrize(
    ('quantize', 'ignored'), [('int8', ()), (None, ('embedder.**',))]
)
def test_nothing_is_read_ahead_of_what_may_not_be_needed(
    quantize, ignored, checkpoint, tmp_path, reads
):
  """What is quantised goes row by row."""
  path, _, base = _orbax(checkpoint)
  model = g4.nn.LoRA(rank=2, model=base, quantize=quantize)
  trainer = _trainer(path, model, tmp_path, ignore_restored_keys=ignored)
  trainer.init_state()
  assert not reads[0]


def test_a_path_that_is_not_there_is_an_error_of_the_restore(tmp_path, reads):
  model = g4.nn.LoRA(rank=2, model=states.model('Gemma4_31B'))
  with pytest.raises(FileNotFoundError, match='SkipLoRA4.*/nowhere/at/all'):
    _trainer('/nowhere/at/all', model, tmp_path).init_state()
  assert not reads[0]


def test_damage_is_an_error_of_the_restore(checkpoint, tmp_path):
  path, _, base = _orbax(checkpoint)
  copy = epath.Path(shutil.copytree(path, tmp_path / 'copy'))
  arrays = _stream.list_whole(copy).values()
  largest = max(arrays, key=lambda x: math.prod(x.shape))
  ((file, offset, _),) = largest.chunks
  data = file.read_bytes()
  file.write_bytes(data[:offset] + b'no zstd' + data[offset + 7 :])
  with pytest.raises(ValueError, match='The checkpoint is damaged: .*zstd'):
    _trainer(copy, g4.nn.LoRA(rank=2, model=base), tmp_path).init_state()


def test_an_array_is_taken_once(tmp_path):
  with _ahead.reading(tmp_path, ('a',), lambda: np.ones(3)):
    assert _ahead.take(tmp_path, ('b',)) is None
    assert _ahead.take(tmp_path / 'other', ('a',)) is None
    taken = _ahead.take(tmp_path, ('a',))
    assert taken is not None and taken.result().sum() == 3
    assert _ahead.take(tmp_path, ('a',)) is None
  assert _ahead.take(tmp_path, ('a',)) is None
  assert _requests.ahead(None, None).__enter__() is None


def test_an_error_does_not_wait_for_the_file(tmp_path):
  release, done = threading.Event(), []
  with pytest.raises(KeyError, match='an error'):
    with _ahead.reading(tmp_path, ('a',), lambda: done.append(release.wait(9))):
      raise KeyError('an error')
  assert not done
  release.set()
