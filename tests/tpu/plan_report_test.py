"""What a person reads of a plan."""

import dataclasses
import re

import pytest

from gemma4_lora import g4
from gemma4_lora.tpu import _chips
from gemma4_lora.tpu import _compile
from tests.lib import plans

_GIB = 2**30


def test_pairs_are_two_sequences_each():
  plan = dataclasses.replace(plans.PLAN, sequences=2)
  assert 'batch 16 x 2 x 2048 tokens' in str(plan)
  assert plan.num_tokens == 2 * plans.PLAN.num_tokens == 2 * 16 * 2048
  assert g4.tpu.Plan.from_json(plan.to_json()) == plan


def test_roofline_is_the_slowest_of_three():
  """By hand, from the rates of v6e's page."""
  assert {k.value: v for k, v in plans.PLAN.seconds_by_bound.items()} == {
      'compute': pytest.approx(9.18e12 / 918e12),
      'memory': pytest.approx(3.2e11 / 1600e9),
      'links': pytest.approx(1.75e9 / 400e9),
  }
  assert plans.PLAN.step_seconds == pytest.approx(0.2)
  assert plans.PLAN.bound == 'memory'
  assert plans.PLAN.tokens_per_second == pytest.approx(16 * 2048 / 0.2)


def test_parts_are_the_peak():
  assert plans.PLAN.peak_bytes == 13 * _GIB + 2**20
  assert plans.PLAN.padding_bytes == 9 * _GIB - sum(
      plans.PLAN.argument_bytes.values()
  )


def test_the_table():
  text = str(plans.PLAN)
  for line in (
      r'v6e:2x4 \(8 devices\), batch 16 x 2048 tokens',
      r'weights +8\.00 GiB',
      r'LoRA +0\.12 GiB',
      r'optimizer +0\.25 GiB',
      r'batch +<0\.01 GiB',
      r'temporaries +4\.00 GiB',
      r'peak +13\.00 GiB',
      r"in use at once +12\.00 GiB +the compiler's count",
      r'v6e has +31\.24 GiB',
      r'float operations +9\.18 TFLOP$',
      r'bytes accessed +320\.00 GB +160\.00 GB with loops run once',
      r'time for compute +10\.00 ms +at 918\.00 TFLOP/s',
      r'roofline step +200\.00 ms .*\(memory\)',
      r'roofline tokens/s +163,840',
      r'all-gather +2\.00 GB +1,234 of them',
      r'sent by a device +1\.75 GB',
      r'fits: 13\.00 GiB of 31\.24 GiB \(42%\)',
      r'note: 1 loops run an unknown number of times',
      r'note: 105 calls of TPU kernels: what they read and write is counted',
      r'note: peak rates of v6e: https://docs\.cloud\.google\.com/tpu/docs/v6e',
      r'note: compiled now: 12 s to trace, 345 s to compile',
  ):
    assert re.search(line, text, re.M), line


def test_a_refusal():
  assert not plans.REFUSED.fits
  assert plans.REFUSED.hbm_bytes == 31 * _GIB
  text = str(plans.REFUSED)
  assert 'does not fit: 40.00 GiB of 31.00 GiB (129%)' in text
  assert re.search(r'temporaries +31\.62 GiB +what the compiler wanted', text)
  assert 'batch: <b>larger</b>' in text
  assert plans.REFUSED.step_seconds is None
  assert plans.REFUSED.bound is None
  assert 'roofline' not in text


def test_a_refusal_without_numbers():
  refused = dataclasses.replace(
      plans.REFUSED,
      too_large=_compile.TooLarge(
          wanted=None, available=None, message='RESOURCE_EXHAUSTED: oh'
      ),
  )
  assert refused.temporary_bytes is None
  assert 'does not fit: RESOURCE_EXHAUSTED: oh' in str(refused)


def test_more_than_the_chip_has_does_not_fit():
  """A compiler that knows no limit, as the CPU's, compiles anything."""
  chip = dataclasses.replace(plans.PLAN.chip, hbm_bytes=12 * _GIB)
  assert not dataclasses.replace(plans.PLAN, chip=chip).fits
  chip = dataclasses.replace(plans.PLAN.chip, hbm_bytes=None)
  plan = dataclasses.replace(plans.PLAN, chip=chip)
  assert plan.fits
  assert 'is not known' in str(plan)


def test_a_chip_without_rates():
  plan = dataclasses.replace(plans.PLAN, chip=_chips.Chip(name='cpu'))
  assert plan.step_seconds is None
  assert plan.tokens_per_second is None
  assert 'no peak rates are known of cpu' in str(plan)


def test_a_notebook_shows_a_bar_with_nothing_unescaped():
  text = plans.PLAN._repr_html_()
  assert '<svg' in text
  assert '<title>weights: 8.00 GiB</title>' in text
  assert 'batch: &lt;b&gt;larger&lt;/b&gt;' in text
  assert 'a &amp; b' in text
  # As wide as they are large, and the limit at its place.
  widths = {
      title: float(width)
      for width, title in re.findall(
          r'<rect x="[\d.]+" y="18" width="([\d.]+)".*?<title>(.*?):', text
      )
  }
  assert widths['weights'] == pytest.approx(2 * widths['temporaries'], rel=0.01)
  assert sum(widths.values()) == pytest.approx(
      640 / 1.02 * 13 / 31.24, rel=0.01
  )
  # Each with a colour of its own.
  colors = re.findall(r'y="18" width="[\d.]+" height="32" fill="(.*?)"', text)
  assert len(colors) == len(set(colors)) == 7
  assert 'v6e: 31.24 GiB' in text
  # A refusal is wider than its limit.
  text = plans.REFUSED._repr_html_()
  assert 'v6e: 31.00 GiB' in text
  assert 'does not fit' in text


@pytest.mark.parametrize(
    ('message', 'wanted', 'available'),
    [
        (
            'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on'
            ' HBM, the total memory required for HLO temporaries (43.78G)'
            ' exceeds available HBM (31.24G). HLO module: jit_step.\nSee https',
            43.78 * _GIB,
            31.24 * _GIB,
        ),
        (
            'RESOURCE_EXHAUSTED: ... HLO temporaries (1.00T) exceeds available'
            ' HBM (512.5M).',
            2**40,
            512.5 * 2**20,
        ),
        (
            'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of'
            ' memory in memory space hbm. Used 20.22G of 15.48G hbm. Exceeded',
            20.22 * _GIB,
            15.48 * _GIB,
        ),
        ('RESOURCE_EXHAUSTED: Out of memory.', None, None),
    ],
)
def test_what_compilers_say_of_memory(message, wanted, available):
  found = _compile.parse_too_large(message)
  assert found.wanted == (wanted and int(wanted))
  assert found.available == (available and int(available))
  assert '\n' not in found.message


def test_another_error_is_none_of_memory():
  assert _compile.parse_too_large('INTERNAL: (1.00G) of nonsense') is None
