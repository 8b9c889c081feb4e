"""What a run says before its first step."""

import types

from gemma import gm
from kauldron import kd
import numpy as np

from gemma4_lora import g4
from gemma4_lora.train.progress import _start_lines
from tests.lib import models

_PARAMS = {
    'w': np.zeros((10, 10)),
    'lora': {'a': np.zeros((10, 2)), 'b': np.zeros((2, 15))},
}
_TRAINED = {('lora', 'a'), ('lora', 'b')}


def _of_model(init_transform=None, *, resumes=False, model=None):
  trainer = types.SimpleNamespace(model=model, init_transform=init_transform)
  return [
      *_start_lines.of_model(
          trainer, _PARAMS, _TRAINED, resumes=resumes
      )  # pyrefly: ignore
  ]


def test_what_trains_and_what_it_starts_from():
  base = g4.ckpts.SkipLoRA4(wrapped=gm.ckpts.LoadCheckpoint(path='/the/base'))
  model = models.lora(cut=models.one_layer, rank=2, targets=['q', 'down'])
  assert _of_model(base, model=model) == [
      'trains  LoRA of rank 2 on 2 projections: 50 of 150 parameters (33.33%)',
      'from    /the/base',
  ]
  go_on = g4.ckpts.LoadLoRA(path='/a/lora', model=model)
  _, start = _of_model(kd.ckpts.MultiTransform(base=base, lora=go_on))
  assert start == 'from    /the/base, LoRA of /a/lora'


def test_a_run_without_a_base_and_one_that_goes_on():
  assert _of_model(kd.ckpts.NoopTransform()) == [
      'trains  50 of 150 parameters (33.33%)',
      'from    a random base',
  ]
  # The checkpointer says from where.
  assert len(_of_model(kd.ckpts.NoopTransform(), resumes=True)) == 1


def test_the_data(capsys):
  trainer = types.SimpleNamespace(
      model=models.lora(cut=models.one_layer, rank=2),
      num_train_steps=50,
      train_ds=types.SimpleNamespace(batch_size=4, data_source=[0] * 80),
      train_losses={},
  )
  batch = {'input': np.array([[2, 3, 0, 0]])}
  data, *_ = _start_lines.of_data(trainer, batch)  # pyrefly: ignore
  assert data == (
      'data    80 rows; 50 steps are 2.5 epochs; first batch: 1 x 4, 50% padding'
  )
  _start_lines.say(iter(['one', 'two']))
  assert capsys.readouterr().out == 'one\ntwo\n'


def test_data_of_which_nothing_is_known():
  """Are no reason to stop."""
  trainer = types.SimpleNamespace(
      model=None, num_train_steps=None, train_ds=types.SimpleNamespace()
  )
  trainer.train_ds.batch_size = None
  lines = [*_start_lines.of_data(trainer, {})]  # pyrefly: ignore
  assert not [x for x in lines if x.startswith('data')]
