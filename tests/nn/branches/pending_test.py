"""LoRA leaves that wait for the base are not taken for trained ones."""

import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.ckpts import _good_state
from gemma4_lora.nn.branches import _pending
from tests.lib import models
from tests.lib import random_params


@pytest.fixture(scope='module', name='pending')
def _pending_params():
  model = models.lora(
      'Gemma4_31B',
      cut=models.one_layer,
      rank=4,
      targets=['q', 'o'],
      init_lora_weights='pissa',
  )
  params = random_params.make(model)
  lora = params['layer_0']['attn']['q_einsum']['lora']['q']
  lora |= {k: _pending.fill(x.shape, x.dtype) for k, x in lora.items()}
  return model, params


_NOT_SET = (
    r'A of 1 projections has no values yet: layer_0\.attn\.q_einsum\.lora\.q\.a'
    r'\. .* g4\.ckpts\.SkipLoRA4\(wrapped=…, model=cfg\.ref\.model\)'
)


@pytest.mark.parametrize(
    'use',
    [
        lambda model, params, path: g4.nn.fuse_params(model, params),
        lambda model, params, path: g4.ckpts.save_lora(
            path / 'lora', model=model, params=params
        ),
        lambda model, params, path: g4.hf.save_peft(
            path / 'peft', model=model, params=params
        ),
    ],
    ids=['fuse_params', 'save_lora', 'save_peft'],
)
def test_who_refuses_them(use, pending, tmp_path):
  with pytest.raises(ValueError, match=_NOT_SET):
    use(*pending, tmp_path)
  assert not list(tmp_path.iterdir())


def test_nothing_saves_them(pending):
  _, params = pending
  state = kd.train.TrainState(
      step=1, params=params, opt_state={}, collections={}
  )
  assert 'A of 1 projections has no values' in _good_state.problem(state)


def test_check_says_so(pending):
  report = g4.nn.check(*pending)
  assert 'A of 1 projections has no values' in report.problems[0]


_DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize('dtype', _DTYPES)
def test_the_mark_is_known_in_any_dtype(dtype):
  leaf = _pending.fill((3, 2), dtype)
  assert not np.isnan(np.asarray(leaf, np.float32)).any()
  assert _pending.is_pending(leaf)
  for narrower in _DTYPES[_DTYPES.index(dtype) :]:
    assert _pending.is_pending(leaf.astype(narrower))
  assert not _pending.is_pending(leaf.at[0, 0].set(1))


def test_a_forward_pass_of_them_is_not_finite():
  for dtype in _DTYPES:
    a, b = (_pending.fill(x, dtype) for x in ((4, 2), (2, 3)))
    x = jnp.asarray([[1e-3, 0, 2e-3, 0]], jnp.bfloat16)
    low = x @ a.astype(x.dtype)
    assert not np.isfinite(
        np.asarray(low @ b.astype(x.dtype), np.float32)
    ).any()


def test_init_computes_what_the_base_does():
  """`jax_debug_nans` sees its logits."""
  model = models.lora(
      'Gemma4_31B',
      cut=models.one_layer,
      rank=4,
      targets=['q', 'o'],
      init_lora_weights='pissa',
      use_dora=True,
  )
  tokens = jnp.ones((1, 3), jnp.int32)
  with jax.debug_nans(True):
    out, params = jax.jit(model.init_with_output)(jax.random.key(0), tokens)
  assert np.isfinite(out.logits).all()
  lora = params['params']['layer_0']['attn']['q_einsum']['lora']['q']
  assert _pending.is_pending(lora['a']) and _pending.is_pending(lora['b'])
