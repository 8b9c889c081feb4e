"""Packed rows: each conversation has the logits that it has alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from kauldron import kontext
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.nn.attention import _blockwise
from tests.lib import forward
from tests.lib import models
from tests.lib import random_params

_LENGTHS = (11, 5, 9)  # The windows of local layers are 8.
_ROW = 32


def _conversations():
  rng = np.random.default_rng(0)
  return [rng.integers(3, 1000, n, np.int32) for n in _LENGTHS]


def _alone():
  rows = [np.pad(x, (0, _ROW - len(x))) for x in _conversations()]
  return jnp.asarray(np.stack(rows))


_ORDERS = ([0, 1, 2], [2, 0, 1], [1, 2, 0])


def _packed():
  """Rows with all of them, each in another order."""
  tokens, positions = [], []
  for order in _ORDERS:
    parts = [_conversations()[i] for i in order]
    at = np.concatenate([np.arange(len(x)) for x in parts])
    row = np.concatenate(parts)
    tokens.append(np.pad(row, (0, _ROW - len(row))))
    positions.append(np.pad(at, (0, _ROW - len(at))))
  return jnp.asarray(np.stack(tokens)), jnp.asarray(np.stack(positions))


_model = functools.partial(
    models.lora, 'Gemma4_E2B', rank=4, positions='batch.positions'
)


@pytest.fixture(scope='module', name='params')
def _params():
  return random_params.make(_model())


@pytest.mark.parametrize('attention', ['gemma', 'blockwise'])
def test_logits_are_those_of_each_alone(attention, params, monkeypatch):
  """In local and global layers, with shared keys and values, B non-zero."""
  # Several blocks per row, and per conversation.
  monkeypatch.setattr(
      _blockwise, 'attend', _with_block(_blockwise.attend, block=4)
  )
  tokens, positions = _packed()
  alone = forward.apply(_model(), params, _alone()).logits
  apply = jax.jit(_model(attention=attention).apply)
  packed = apply({'params': params}, tokens, positions=positions).logits
  for row, order in enumerate(_ORDERS):
    at = 0
    for i in order:
      n = _LENGTHS[i]
      np.testing.assert_allclose(
          packed[row, at : at + n], alone[i, :n], rtol=2e-4, atol=2e-4
      )
      at += n


def _with_block(attend, *, block):
  def wrapped(settings, *args):
    return attend(dataclasses.replace(settings, block=block), *args)

  return wrapped


def test_without_positions_conversations_see_each_other(params):
  """What the others prove is no accident."""
  tokens, _ = _packed()
  alone = forward.apply(_model(), params, _alone()).logits[1, :5]
  together = forward.apply(_model(), params, tokens).logits[0, 11:16]
  assert np.abs(alone - together).max() > 0.1


def test_blocks_of_other_conversations_are_not_computed():
  at = np.repeat([1, 2, 3], (8, 16, 8))[None]
  allowed = _blockwise.Allowed(
      positions=jnp.zeros((1, 32), int),
      valid=jnp.ones((1, 32), bool),
      segments=jnp.asarray(at),
  )
  settings = _blockwise.Settings(window=None, soft_cap=None, block=4)
  ranges = jax.jit(_blockwise._ranges, static_argnums=0)
  first, end = ranges(settings, allowed)
  assert first.tolist() == [0, 0, 2, 2, 2, 2, 6, 6]
  assert end.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_kauldron_reads_the_positions():
  keys = kontext.get_keypaths(_model())
  assert keys['positions'] == 'batch.positions'
  assert keys['tokens'] == 'batch.input'
  plain = g4.nn.LoRA(rank=4, model=g4.testing.Gemma4_31B(tokens='batch.input'))
  assert 'positions' not in kontext.get_keypaths(plain)


def test_images_in_packed_rows_are_an_error():
  model = _model()
  tokens, positions = _packed()
  with pytest.raises(ValueError, match='do not go with images .*unpacked'):
    jax.eval_shape(
        lambda: model.init_with_output(
            jax.random.key(0), tokens, positions=positions, images=0
        )
    )
