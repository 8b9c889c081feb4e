"""LoRA on no base, or one that is restored by the wrong transform, is said."""

from gemma import gm
import jax.numpy as jnp
from kauldron import kd
import pytest

from gemma4_lora import g4
from gemma4_lora.train.checks import _base_source

_BASE = {'w': jnp.ones(3)}
_PARAMS = _BASE | {'lora': {'a': jnp.ones(3)}}
_LOAD = gm.ckpts.LoadCheckpoint(path='/x')


class _Own(kd.ckpts.InitTransform):

  def transform(self, state):
    return state


def _check(transform, params=_PARAMS, **kwargs):
  kwargs = {'allow_random_base': False} | kwargs
  _base_source.check(transform, params, **kwargs)


@pytest.mark.parametrize(
    'transform',
    [
        kd.ckpts.NoopTransform(),
        g4.ckpts.LoadLoRA(path='/x'),
        kd.ckpts.MultiTransform(x=g4.ckpts.LoadLoRA(path='/x')),
    ],
)
def test_no_base_is_a_warning_that_one_field_silences(transform, caplog):
  _check(transform)
  assert 'THE BASE MODEL IS RANDOM' in caplog.text
  assert 'init_transform=g4.ckpts.SkipLoRA4(wrapped=gm.ckpts' in caplog.text
  assert 'g4.train.TrainStep(allow_random_base=True)' in caplog.text
  caplog.clear()
  _check(transform, allow_random_base=True)
  _check(transform, _BASE)  # No LoRA: pre-training.
  assert not caplog.text


@pytest.mark.parametrize(
    'transform',
    [
        g4.ckpts.SkipLoRA4(wrapped=_LOAD),
        g4.ckpts.PartialLoad(path='/x'),
        gm.ckpts.SkipLoRA(_LOAD),
        _Own(),
    ],
)
def test_what_restores_a_base_or_may(transform, caplog):
  _check(transform)
  assert not caplog.text


def test_a_loader_that_knows_no_lora():
  with pytest.raises(
      ValueError, match=r'Wrap it in SkipLoRA4: init_transform='
  ):
    _check(kd.ckpts.MultiTransform(x=_LOAD))
  _check(_LOAD, _BASE)


def test_gemmas_skip_lora_where_it_fails():
  with pytest.raises(
      ValueError, match='do not match … .*g4.ckpts.SkipLoRA4 in'
  ):
    with _base_source.explained(
        kd.ckpts.MultiTransform(x=gm.ckpts.SkipLoRA(_LOAD))
    ):
      raise ValueError('Trees do not match\nand so on')
  with pytest.raises(ValueError, match='^mine$'):
    with _base_source.explained(_Own()):
      raise ValueError('mine')
