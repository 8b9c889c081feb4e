"""A mask that selects nothing, or is forgotten, is an error at the start."""

import jax.numpy as jnp
from kauldron import kd
import optax
import pytest

from gemma4_lora.train.checks import _what_trains

_PARAMS = {
    'layer_0': {
        'w': jnp.ones((4, 3)),
        'codes': jnp.ones((4, 3), jnp.int8),
        'lora': {'q': {'a': jnp.ones((4, 2)), 'b': jnp.ones((2, 3))}},
    },
    'final_norm': {'scale': jnp.ones(3)},
}
_BASE = {'layer_0': {'w': jnp.ones((4, 3))}}


def _partial(select):
  return kd.optim.partial_updates(optax.adam(1.0), mask=kd.optim.select(select))


def test_a_mask_that_selects_nothing():
  with pytest.raises(
      ValueError,
      match=(
          r'nothing would train.* LoRA are 2 leaves, layer_0\.lora\.q\.a first:'
          r' mask=kd\.optim\.select\("lora"\)\. Names in the paths: .*lora, '
      ),
  ):
    _what_trains.check(_partial('Lora'), _PARAMS)
  with pytest.raises(ValueError, match='paths: w.$'):
    _what_trains.check(_partial('lora'), _BASE)


def test_a_forgotten_mask():
  floats = _PARAMS | {'layer_0': {**_PARAMS['layer_0']}}
  del floats['layer_0']['codes']
  with pytest.raises(
      ValueError,
      match=(
          r'all 2 leaves of the base model.* Write'
          r' optimizer=kd\.optim\.partial_updates\(optax\.adamw\(…\),'
          r' mask=kd\.optim\.select\("lora"\)\)'
      ),
  ):
    _what_trains.check(optax.adamw(1.0), floats)


def test_all_of_a_model_without_lora_may_train():
  _what_trains.check(optax.adamw(1.0), _BASE)


def test_a_mask_that_selects_some_of_the_base_means_it(caplog):
  with caplog.at_level('INFO', logger='absl'):
    _what_trains.check(_partial('lora'), _PARAMS)
    assert not caplog.text
    _what_trains.check(_partial(['lora', 'scale']), _PARAMS)
  assert 'also selects 1 of 2 leaves of the base' in caplog.text
