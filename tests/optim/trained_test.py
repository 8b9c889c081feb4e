"""An optimizer's program says which leaves it changes."""

import jax
import jax.numpy as jnp
from kauldron import kd
import optax
import pytest

from gemma4_lora.optim import _trained

_PARAMS = {
    'layer_0': {
        'w': jnp.ones((4, 3)),
        'norm': {'scale': jnp.ones(3)},
        'lora': {'q': {'a': jnp.ones((4, 2)), 'b': jnp.ones((2, 3))}},
    },
    'embedder': jnp.ones((5, 4)),
}
_BASE = ['embedder', 'layer_0.norm.scale', 'layer_0.w']
_WARMUP = optax.linear_schedule(0.0, 1e-3, 10)


def _lora(optimizer, select='lora'):
  return kd.optim.partial_updates(optimizer, mask=kd.optim.select(select))


def _skip_large(inner):
  """No update where the gradient of all of the model is large."""

  def update(grads, state, params):
    updates, state = inner.update(grads, state, params)
    is_small = optax.global_norm(grads) < 1e3
    return jax.tree.map(lambda u: jnp.where(is_small, u, 0), updates), state

  return optax.GradientTransformation(inner.init, update)


def _trained_base(optimizer):
  paths = _trained.trained(optimizer, _PARAMS, optimizer.init(_PARAMS))
  return ['.'.join(path) for path in paths if 'lora' not in path]


@pytest.mark.parametrize(
    'optimizer',
    [
        _lora(optax.adamw(_WARMUP)),
        _lora(optax.sgd(1e-2)),
        _lora(optax.adafactor(1e-2)),
        optax.chain(optax.clip_by_global_norm(1.0), _lora(optax.adam(1e-3))),
        optax.chain(_lora(optax.adam(1e-3)), optax.clip_by_global_norm(1.0)),
        _lora(optax.MultiSteps(optax.adam(1e-3), 4)),
        optax.MultiSteps(_lora(optax.adam(1e-3)), 4),
        optax.apply_if_finite(_lora(optax.adam(1e-3)), 3),
        _skip_large(_lora(optax.adam(1e-3))),
        optax.multi_transform(
            {'lora': optax.adam(1e-3), 'base': optax.set_to_zero()},
            lambda p: jax.tree.map(
                lambda x: 'lora' if x else 'base', kd.optim.select('lora')(p)
            ),
        ),
    ],
)
def test_what_trains_lora_alone(optimizer):
  assert not _trained_base(optimizer)


@pytest.mark.parametrize(
    'optimizer',
    [
        optax.sgd(1e-2),
        # Its first update is zero, and its state has none for warm-up.
        optax.sgd(_WARMUP),
        optax.adamw(_WARMUP),
        optax.MultiSteps(optax.adam(1e-3), 4),
        optax.apply_if_finite(optax.adam(1e-3), 3),
        _skip_large(optax.adam(1e-3)),
        # Weight decay outside of the mask.
        optax.chain(_lora(optax.adam(1e-3)), optax.add_decayed_weights(1e-2)),
        # `masked` hands the gradients of the rest on as updates.
        optax.masked(optax.adam(1e-3), kd.optim.select('lora')),
    ],
)
def test_what_trains_the_base_too(optimizer):
  assert _trained_base(optimizer) == _BASE


def test_names_the_leaves_that_a_mask_selects():
  assert _trained_base(_lora(optax.adam(1e-3), 'w')) == ['layer_0.w']
  assert _trained_base(_lora(optax.sgd(1e-3), ['lora', 'norm'])) == [
      'layer_0.norm.scale'
  ]


@pytest.mark.parametrize(
    ('optimizer', 'wanted'),
    [
        (_lora(optax.adam(1e-3)), ['layer_0.lora.q.a', 'layer_0.lora.q.b']),
        (_lora(optax.sgd(1e-3), 'lora.q.b'), ['layer_0.lora.q.b']),
        (_lora(optax.adam(1e-3), 'Lora'), []),
        (optax.set_to_zero(), []),
    ],
)
def test_leaves_of_lora_too(optimizer, wanted):
  paths = _trained.trained(optimizer, _PARAMS)
  assert ['.'.join(path) for path in paths] == wanted
