"""Counts of a step: tokens, trained tokens, norm of the gradients."""

import dataclasses
from typing import Any

from kauldron import kd
from kauldron import kontext
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.train.progress import _step_counts


@dataclasses.dataclass
class _Model:
  tokens: kontext.Key = 'batch.input'


_BATCH = {
    'input': np.array([[2, 5, 7, 0], [2, 9, 0, 0]]),
    'target': np.array([[5, 7, 0, 0], [9, 1, 0, 0]])[..., None],
    'mask': np.array([[0, 1, 0, 0], [1, 1, 0, 0]])[..., None],
}


def _loss(**kwargs: Any):
  return g4.losses.SoftmaxCrossEntropyWithIntLabels(
      head='preds.head', labels='batch.target', **kwargs
  )


@pytest.mark.parametrize(
    ('losses', 'trained'),
    [
        ({'x': _loss(mask='batch.mask')}, 3),
        ({'x': _loss()}, 8),
        # The same tokens, counted once.
        ({'x': _loss(mask='batch.mask'), 'y': _loss(mask='batch.mask')}, 3),
        # With no tokens that we know.
        ({'x': kd.losses.L2(preds='preds.x', targets='batch.target')}, None),
    ],
)
def test_tokens_of_a_batch(losses, trained):
  found = _step_counts.of_batch(_BATCH, model=_Model(), losses=losses)
  want = {'tokens': 5} | ({} if trained is None else {'trained': trained})
  assert found == want


def test_a_model_that_reads_no_tokens():
  found = _step_counts.of_batch(
      _BATCH, model=_Model(tokens='batch.x'), losses={}
  )
  assert not found
  assert _step_counts.shape_of_tokens(_BATCH, model=_Model()) == (2, 4)
  assert _step_counts.shape_of_tokens({}, model=_Model()) is None


def test_the_norm_is_that_of_what_trains():
  context = kd.train.Context(
      step=0,
      batch=_BATCH,
      grads={
          'w': np.ones(5),
          'lora': {'a': np.array([3.0]), 'b': np.array(4.0)},
      },
  )
  kwargs = dict(model=_Model(), losses={})
  trained = [('lora', 'a'), ('lora', 'b')]
  counts = _step_counts.of_step(context, trained=trained, **kwargs)
  assert _step_counts.read(counts) == {'tokens': 5, 'grad_norm': 5}
  counts = _step_counts.of_step(context, trained=[], **kwargs)
  assert _step_counts.read(counts) == {'tokens': 5}
