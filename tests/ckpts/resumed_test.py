"""What a run says when it goes on."""

import dataclasses
import json
import os

from etils import epath
from gemma import gm
from kauldron import kd
from kauldron import konfig
import pytest

from gemma4_lora import g4
from gemma4_lora.ckpts import _resumed

_OLD = {
    'seed': 0,
    'model': {'rank': 4, 'targets': ['q', 'v']},
    'schedules': {'lr': {'__qualname__': 'optax:constant', 'value': 0.1}},
}


@pytest.mark.parametrize(
    ('changes', 'lines'),
    [
        ({}, []),
        ({'seed': 1}, ['seed: 0 → 1']),
        (
            {'model': {'rank': 8, 'targets': ['q', 'k']}},
            ['model.rank: 4 → 8', 'model.targets.1: "v" → "k"'],
        ),
        (
            {'model': {'rank': 4, 'targets': ['q']}},
            ['model.targets: ["q", "v"] → ["q"]'],
        ),
        (
            {'schedules': {}, 'evals': {'__qualname__': 'kd:E', 'n': 1}},
            ['schedules.lr: optax:constant(…) → none', 'evals: none → kd:E(…)'],
        ),
        ({'seed': 'x' * 99}, [f'seed: 0 → "{"x" * 59}…']),
    ],
)
def test_differences(changes, lines):
  assert list(_resumed.differences(_OLD, _OLD | changes)) == lines


def test_changes_since_the_start(tmp_path):
  path = epath.Path(tmp_path / 'config.json')
  new = konfig.ConfigDict({'seed': 1, 'x': {'y': 2}})
  assert _resumed._changed(path, new) == []  # There is none to compare with.
  path.write_text(json.dumps({'seed': 0, 'x': {'y': 2}}))
  assert _resumed._changed(path, new) == ['seed: 0 → 1']
  assert _resumed._changed(path, None) == []
  path.write_text('{')
  assert 'cannot be read' in _resumed._changed(path, new)[0]


@dataclasses.dataclass(frozen=True)
class _Made(os.PathLike):
  """As `g4.testing.RandomCheckpoint`."""

  model: str = 'Gemma4_E2B(many lines)'

  def __fspath__(self):
    return '/made'


def test_the_base():
  made = gm.ckpts.LoadCheckpoint(path=_Made())
  assert _resumed.base_of(g4.ckpts.SkipLoRA4(wrapped=made)) == '/made'
  loader = gm.ckpts.LoadCheckpoint(path='gs://b/base')
  assert _resumed.base_of(g4.ckpts.SkipLoRA4(wrapped=loader)) == 'gs://b/base'
  assert _resumed.base_of(kd.ckpts.NoopTransform()) == 'none'

  class Own(kd.ckpts.InitTransform):

    def transform(self, state):
      return state

  assert _resumed.base_of(Own()) == 'Own'


def test_without_a_trainer(tmp_path):
  folder = epath.Path(tmp_path) / 'checkpoints' / 'ckpt_200'
  args = dict(step=200, has_base=False)
  want = f'goes on from step 200 of {tmp_path}'
  assert _resumed.text(None, folder, **args) == f'{want}.'
  folder.mkdir(parents=True)
  (folder / '_CHECKPOINT_METADATA').write_text(
      '{"commit_timestamp_nsecs": 1700000000000000000}'
  )
  assert _resumed.text(None, folder, **args) == (
      f'{want} (saved 2023-11-14 22:13:20 UTC).'
  )
