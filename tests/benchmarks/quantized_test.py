"""The benchmark of a quantised base runs, and says what it measures."""

import dataclasses

import jax
import numpy as np

from gemma4_lora import g4
from tests.benchmarks import quantized
from tests.benchmarks import sizes
from tests.lib import dequantized
from tests.lib import hf_reference


def test_errors_are_of_the_dequantized_base():
  found = quantized.errors('dense', formats=('int8', 'int4'))
  assert 0 < found['bfloat16'] < found['int8'] < found['int4'] < 1.2
  reference = hf_reference.load('dense')
  model = g4.nn.LoRA(
      rank=1, targets='q', quantize='int8', model=reference.model
  )
  codes = quantized._quantized_base.quantize(reference.params, model.quantized)
  base = dequantized.tree(codes, np.float32)
  apply = jax.jit(reference.model.apply)
  got = apply({'params': base}, reference.tokens).logits
  # Those of transformers itself.
  squares = np.mean(np.square(got - reference.logits))
  error = np.sqrt(squares / np.mean(np.square(reference.logits)))
  np.testing.assert_allclose(found['int8'], error, rtol=0.01)


def test_steps_take_turns():
  size = dataclasses.replace(sizes.TINY, num_layers=1, period=1)
  found = quantized.seconds(size, rounds=2, formats=('int8',))
  assert found.keys() == {'bfloat16', 'int8'}
  assert all(len(x) == 2 and min(x) > 0 for x in found.values())
