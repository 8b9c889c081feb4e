"""A sweep finds the largest sizes, with few compiles."""

import dataclasses
import math

import pytest

from gemma4_lora import g4
from gemma4_lora.tpu import _compile
from gemma4_lora.tpu import _sweep
from tests.lib import plan_configs
from tests.lib import plans

_GIB = 2**30


def _plan(size, peak, *, limit=31 * _GIB):
  """A plan as a compiler would give it: refused if the peak is too large."""
  arguments = sum(plans.PLAN.argument_bytes.values())
  if peak > limit:
    return dataclasses.replace(
        plans.REFUSED,
        batch=size,
        too_large=_compile.TooLarge(
            wanted=int(peak), available=limit, message=''
        ),
    )
  memory = _compile.Memory(
      arguments=arguments,
      outputs=0,
      temporaries=int(peak) - arguments,
      in_use=0,
  )
  return dataclasses.replace(plans.PLAN, batch=size, memory=memory)


def _search(peak_of, *, start, unit=1, refine=3):
  """Returns what is found, and the sizes that were tried."""
  tried = []

  def at(size):
    tried.append(size)
    return _plan(size, peak_of(size))

  found = _sweep._largest(
      at, start=start, unit=unit, max_size=2**20, refine=refine
  )
  return found and found.batch, tried


@pytest.mark.parametrize('start', [1, 4, 16, 64, 256])
@pytest.mark.parametrize('per_size', [0.3, 0.9, 2.5, 7.0])
def test_finds_the_largest_where_memory_is_a_line(start, per_size):
  arguments = sum(plans.PLAN.argument_bytes.values())
  found, tried = _search(
      lambda size: arguments + size * per_size * _GIB, start=start
  )
  assert found == math.floor((31 * _GIB - arguments) / (per_size * _GIB))
  assert len(tried) == len(set(tried)) <= 10


def test_close_where_memory_is_no_line():
  found, tried = _search(
      lambda size: (9 + 0.001 * size**2) * _GIB, start=4, refine=5
  )
  assert 135 <= found <= math.isqrt(22_000)
  assert len(tried) <= 14


@pytest.mark.parametrize('start', [3, 8, 40])
def test_only_multiples_of_the_devices(start):
  found, tried = _search(
      lambda size: (9 + 0.5 * size) * _GIB, start=start, unit=8
  )
  assert found == 40  # 44 would fit.
  assert all(size % 8 == 0 for size in tried)


def test_nothing_fits():
  found, tried = _search(lambda size: 40 * _GIB, start=4)
  assert found is None
  assert tried == [4, 2, 1]


def test_a_real_one(tmp_path):
  """On devices that hold it all, until its own end; every size compiles once."""
  seen = []
  found = g4.tpu.sweep(
      plan_configs.config(cut='one_layer'),
      topology='cpu',
      length=8,
      cache=tmp_path,
      on_plan=seen.append,
      max_size=16,
  )
  assert found.largest_batch.batch == 16
  assert found.largest_length.length == 16
  assert found.largest_length.batch == 8
  assert tuple(seen) == found.plans
  sizes = [(x.batch, x.length) for x in seen]
  assert len(sizes) == len(set(sizes))
  assert 'largest batch that fits: 16 x 8' in str(found)
  assert len(str(found).splitlines()) == 1 + len(seen) + 1 + 2
  assert 'largest length that fits: 8 x 16' in found._repr_html_()


def test_what_is_printed_of_a_refusal():
  sweep = g4.tpu.Sweep(
      plans=(_plan(4, 12 * _GIB), _plan(8, 33 * _GIB)),
      largest_batch=_plan(4, 12 * _GIB),
      largest_length=None,
  )
  text = str(sweep)
  assert 'does not fit' in text
  assert 'largest batch that fits: 4 x 2048 (batch 8 does not)' in text
  assert 'largest length: nothing that was tried fits' in text
