"""Images against transformers and PEFT: padded patches are as if not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import g4
from tests.lib import image_cases
from tests.lib import training


def _assert_same_soft_tokens(got, want):
  atol = 1e-5 * np.sqrt(np.mean(np.square(want)))
  np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def _assert_same_logits(got, want):
  np.testing.assert_allclose(got, want, rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        # LoRA inside of clips.
        ('e_images', {}),
        # DoRA; layers in a loop, and rematerialised.
        ('dense_images', dict(scan_layers=True, remat='block')),
        # 12B's: no tower, nor padding in one.
        ('unified_images', {}),
    ],
)
def test_step_equals_peft(name, settings):
  """Soft tokens, logits, and gradients of A, B and magnitudes.

  Of two sequences with images whose padding is none, some, most, and all.
  """
  case = image_cases.load(name)
  assert {x.row.tower for x in case.lora.adapted} == {'text', 'vision'}
  assert case.lora.use_dora == (name == 'dense_images')
  step = image_cases.step(case.lora.clone(**settings), case)
  (soft_tokens, is_real), logits, grads = step(case.lora_params, case.images)
  effect = np.abs(case.adapted_soft_tokens - case.soft_tokens).max()
  assert effect > 1  # The adapter does something to the tower.
  _assert_same_soft_tokens(soft_tokens[is_real], case.adapted_soft_tokens)
  _assert_same_logits(logits, case.adapted_logits)
  want = training.flat(case.gradients)
  assert grads.keys() == case.gradients.keys()
  for path, grad in training.flat(grads).items():
    error = np.linalg.norm(grad - want[path])
    assert error <= 5e-4 * np.linalg.norm(want[path]), path

  # Whatever padding holds, not one bit of it arrives.
  again = step(case.lora_params, image_cases.far_padding(case.images))
  np.testing.assert_array_equal(again[0][0][is_real], soft_tokens[is_real])
  np.testing.assert_array_equal(again[1], logits)
  jax.tree.map(np.testing.assert_array_equal, again[2], grads)


def test_a_prompt_without_lora_equals_transformers():
  """With a cache, as samplers read their prompts: one sequence."""
  case = image_cases.load('e_images')
  model = g4.nn.RouterFix(model=case.base)
  num_tokens = case.tokens.shape[1]
  cache = model.init_cache(
      batch_size=1, dtype=jnp.float32, cache_length=num_tokens
  )
  output = jax.jit(model.apply)(
      {'params': case.params},
      case.tokens[:1],
      images=jax.tree.map(lambda x: x[:1], case.images),
      cache=cache,
      positions=jnp.arange(num_tokens)[None],
      attention_mask=jnp.tril(jnp.ones((1, num_tokens, num_tokens), bool)),
  )
  _assert_same_logits(output.logits, case.logits[:1])
