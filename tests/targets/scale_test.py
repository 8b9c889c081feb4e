"""The scale of a branch, and the alpha that gives it."""

import pytest

from gemma4_lora.targets import _scale


@pytest.mark.parametrize(('use_rslora', 'want'), [(False, 2), (True, 8)])
def test_scale_and_its_inverse(use_rslora, want):
  assert _scale.scale(32, 16, use_rslora=use_rslora) == want
  assert _scale.alpha_for(want, 16, use_rslora=use_rslora) == 32
