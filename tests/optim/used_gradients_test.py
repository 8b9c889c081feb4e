"""Optimizers that bring the gradients of frozen leaves back are told apart."""

import jax
from kauldron import kd
import numpy as np
import optax
import pytest

from gemma4_lora import g4

_PARAMS = {
    'w': jax.ShapeDtypeStruct((4, 4), np.float32),
    'lora': {'a': jax.ShapeDtypeStruct((4, 2), np.float32)},
}


def _partial(optimizer):
  return kd.optim.partial_updates(optimizer, mask=kd.optim.select('lora'))


@pytest.mark.parametrize(
    'optimizer',
    [
        _partial(optax.adamw(1e-3)),
        _partial(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))),
        _partial(
            optax.MultiSteps(optax.adam(1e-3), 2).gradient_transformation()
        ),
        _partial(optax.apply_if_finite(optax.adam(1e-3), 3)),
        optax.adam(1e-3),  # Full fine-tuning: nothing is frozen.
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
    ],
)
def test_none_of_the_frozen_is_read(optimizer):
  assert g4.optim.frozen_gradients(optimizer, _PARAMS) == []


@pytest.mark.parametrize(
    'optimizer',
    [
        optax.chain(optax.clip_by_global_norm(1.0), _partial(optax.adam(1e-3))),
        optax.MultiSteps(
            _partial(optax.adam(1e-3)), 2
        ).gradient_transformation(),
        optax.apply_if_finite(_partial(optax.adam(1e-3)), 3),
    ],
)
def test_what_stands_around_reads_the_frozen(optimizer):
  assert g4.optim.frozen_gradients(optimizer, _PARAMS) == ['w']
