"""LoRA off: the base, from parameters with LoRA."""

import functools

from gemma import peft
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.lib import forward
from tests.lib import models
from tests.lib import random_params

_TOKENS = jnp.arange(3, 19).reshape(2, 8)


_lora = functools.partial(
    models.lora,
    # Equal layers, of which `scan_layers=` makes a loop.
    cut=functools.partial(models.with_layers, is_global=(False, False)),
    rank=2,
    targets='attention',
)


@pytest.mark.parametrize(
    'kwargs',
    [
        {'with_reference': True, 'modules_to_save': ['final_norm']},
        {'scan_layers': True, 'attention': 'blockwise', 'remat': 'attention'},
    ],
)
def test_off_is_the_base_in_evaluators(kwargs):
  """With all that saves memory, and as its own reference."""
  model = _lora(**kwargs)
  params = random_params.make(model)
  base, _ = peft.split_params(params)
  want = forward.logits(model.model, base, _TOKENS)

  def evaluate(model):
    apply = functools.partial(model.apply, is_training_property=False)
    return jax.jit(apply)({'params': params}, _TOKENS)

  off = evaluate(model.clone(enabled=False))
  np.testing.assert_allclose(off.logits, want, atol=2e-5)
  head = 30 * jnp.tanh(off.head.hidden @ off.head.embedding.T / 30)
  np.testing.assert_allclose(head, want, atol=2e-4)
  if model.with_reference:
    assert abs(evaluate(model).logits - want).max() > 0.1
    np.testing.assert_array_equal(off.reference.logits, off.logits)


def test_its_parameters_are_those_of_lora():
  shapes = [
      jax.eval_shape(model.init, jax.random.key(0), _TOKENS)['params']
      for model in (_lora(), _lora(enabled=False))
  ]
  assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])


def test_off_is_not_for_training():
  model = _lora()
  params = random_params.make(model)
  with pytest.raises(ValueError, match=r'enabled=False\) has nothing to train'):
    jax.eval_shape(
        lambda: model.clone(enabled=False).apply(
            {'params': params}, _TOKENS, is_training_property=True
        )
    )


@pytest.mark.parametrize('init', ['pissa', 'olora'])
def test_off_is_not_the_base_where_that_changes(init):
  with pytest.raises(ValueError, match=f"enabled=False needs .*'{init}'"):
    _lora(init_lora_weights=init, enabled=False)
