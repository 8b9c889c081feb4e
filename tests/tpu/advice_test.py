"""Advice makes a step smaller, never larger."""

import dataclasses
import types

import pytest

from gemma4_lora.tpu import _advice
from gemma4_lora.tpu import _compile
from tests.lib import plans

_GIB = 2**30


def _advice_on(*, temporaries, outputs):
  memory = _compile.Memory(
      arguments=9 * _GIB,
      outputs=outputs * _GIB,
      temporaries=temporaries * _GIB,
      in_use=32 * _GIB,
  )
  plan = dataclasses.replace(plans.PLAN, memory=memory, advice=())
  assert not plan.fits  # In 31.24 GiB.
  trainer = types.SimpleNamespace(
      model=None,
      train_losses={},
      sharding=types.SimpleNamespace(params=None),
  )
  return _advice.advice_on(plan, trainer)


@pytest.mark.parametrize(
    ('temporaries', 'outputs', 'batch', 'length'),
    [
        # 22.8 GiB of room, nine tenths of it for temporaries: 0.63 of them.
        (32.5, 0, 8, 1024),
        (400, 0, None, 64),  # Not one sequence per device fits.
        # Outputs are too large; the temporaries might be five times as many.
        (4, 20, None, None),
    ],
)
def test_smaller_batches_and_lengths(temporaries, outputs, batch, length):
  advice = _advice_on(temporaries=temporaries, outputs=outputs)
  found = [x for x in advice if x.startswith(('batch:', 'length:'))]
  assert found == [
      f'{name}: {value} in place of {now} (an estimate).'
      for name, value, now in (('batch', batch, 16), ('length', length, 2048))
      if value is not None
  ]
