"""The wrapper as a model of gemma's samplers."""

import functools

from gemma import gm
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.gemma4 import _sizes
from tests.lib import models
from tests.lib import random_params
from tests.lib import sampling

_model = functools.partial(models.lora, rank=3)


@pytest.mark.parametrize('name', _sizes.NAMES)
def test_cached_decode_equals_the_uncached_forward(name):
  """Greedy text of the sampler is the argmax of whole forward passes."""
  model = _model(name)
  params = random_params.make(model)
  tokenizer = g4.testing.Gemma4Tokenizer()
  sampler = sampling.sampler(model, params, cls=gm.text.Gemma4Sampler)
  prompt = '<|turn>user\nGood morning<turn|>\n<|turn>model\n'
  out = sampler.sample(prompt, max_new_tokens=8, return_state=True)
  got = np.asarray(out.state.predicted_tokens[0][:8])

  tokens = tokenizer.encode(prompt, add_bos=True)
  stop = (tokenizer.special_tokens.EOS, tokenizer.special_tokens.END_OF_TURN)
  for step in range(8):
    # Padded to one length: one compilation.
    padded = jnp.asarray([tokens + [0] * (40 - len(tokens))])
    logits = model.apply({'params': params}, padded).logits
    tokens.append(int(np.argmax(logits[0, len(tokens) - 1])))
    assert tokens[-1] == got[step], step
    if tokens[-1] in stop:
      break


def test_alpha_counts_in_the_sampler():
  """Two samplers of models that differ in alpha alone, in one process."""
  model = _model('Gemma4_31B')
  params = random_params.make(model)

  def sample(alpha):
    _, tokens = sampling.chat(model.clone(alpha=alpha), params)
    return tokens

  first = sample(3.0)
  assert sample(30.0) != first
  assert sample(3.0) == first
