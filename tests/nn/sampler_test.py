"""The wrapper as a model of gemma's samplers."""

import pytest

from tests.lib import models
from tests.lib import random_params
from tests.lib import sampling


# E4B has the features of E2B, and 26B_A4B has 31B's attention.
@pytest.mark.parametrize(
    ('name', 'cut', 'targets'),
    [
        ('Gemma4_E2B', models.shallow, ['text']),
        ('Gemma4_26B_A4B', models.one_layer, ['text', 'experts']),
    ],
)
def test_cached_decode_equals_the_uncached_forward(name, cut, targets):
  """Greedy text of the sampler is the argmax of whole forward passes."""
  model = models.lora(name, cut=cut, rank=3, targets=targets)
  params = random_params.make(model)
  assert sampling.sampled(model, params) == sampling.greedy(model, params)
