"""The learning rate that a config says."""

import types

from kauldron import konfig
import pytest

from gemma4_lora.train.progress import _learning_rate

with konfig.imports():
  from kauldron import kd
  import optax

  from gemma4_lora import g4


def _find(optimizer, **schedules):
  trainer = types.SimpleNamespace(
      raw_cfg=konfig.ConfigDict({'optimizer': optimizer}), schedules=schedules
  )
  return _learning_rate.find(trainer)


def _partial(optimizer):
  return kd.optim.partial_updates(optimizer, mask=kd.optim.select('lora'))


@pytest.mark.parametrize(
    'make',
    [
        lambda: optax.adamw(learning_rate=1e-4),
        lambda: _partial(optax.adamw(1e-4)),
        lambda: _partial(
            optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-4))
        ),
        lambda: _partial(optax.adamw(optax.constant_schedule(1e-4))),
        lambda: _partial(g4.optim.lora_plus(optax.adamw(1e-4), lr_ratio=16)),
    ],
)
def test_it_is_found_behind_what_stands_around_it(make):
  assert _find(make())(7) == pytest.approx(1e-4)


def test_a_schedule_is_that_of_the_step():
  rate = _find(
      optax.adamw(optax.linear_schedule(0.0, 1.0, transition_steps=10))
  )
  assert (rate(0), rate(5), rate(20)) == (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    'make',
    [
        lambda: optax.chain(optax.sgd(1e-4), optax.adamw(1e-3)),
        lambda: optax.MultiSteps(optax.sgd(1e-4), every_k_schedule=2),
        lambda: optax.scale(-1e-4),
    ],
)
def test_what_is_not_one_number_is_unknown(make):
  assert _find(make()) is None


def test_what_kauldron_writes_is_not_written_twice():
  assert _find(optax.sgd(1e-4), learning_rate=lambda step: 1e-4) is None


def test_a_trainer_made_of_objects_does_not_say_it():
  trainer = types.SimpleNamespace(raw_cfg=None, schedules={})
  assert _learning_rate.find(trainer) is None
