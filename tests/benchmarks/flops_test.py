"""The LoRA step computes little more than the frozen model and its branches."""

import dataclasses

from gemma import gm
import pytest

from tests.benchmarks import flops


@pytest.mark.parametrize('targets', ['text', 'attention'])
def test_step_of_e2b_at_512_tokens_is_within_5_percent(targets):
  """Real widths, and a local and a global layer; the benchmark has all 35."""
  model = gm.nn.Gemma4_E2B(text_only=True)
  config = dataclasses.replace(
      model.config,
      attention_types=model.config.attention_types[3:5],
      kv_cache_sharing_config=None,
  )
  measured = flops.measure(
      model.clone(config=config), targets, rank=16, length=512, compiles=False
  )
  assert measured.branches > 0
  assert 0.95 <= measured.ratio <= 1.05
