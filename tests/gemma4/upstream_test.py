"""What is broken in gemma 4.0.1, of which the README tells.

A test that fails here says that gemma has corrected it: then the README's table
and, perhaps, what we do about it can go.
"""

import importlib.metadata

from gemma import gm
import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.gemma4.forward import _patch_mask
from tests.lib import hf_reference
from tests.lib import image_cases
from tests.lib import models

pytestmark = pytest.mark.skipif(
    importlib.metadata.version('gemma') != '4.0.1',
    reason='is about the release on PyPI',
)


def _init(model):
  """Shapes of the parameters."""
  tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
  return jax.eval_shape(model.init, jax.random.key(0), tokens)['params']


def _is_lora(params):
  return jax.tree.leaves(kd.optim.select('lora')(params))


def test_lora_adapts_no_layer():
  """And says nothing: `select('lora')` is False everywhere."""
  base = models.base()
  assert not any(_is_lora(_init(gm.nn.LoRA(rank=4, model=base))))
  assert any(_is_lora(_init(g4.nn.LoRA(rank=4, model=base))))


def test_skip_lora_does_not_restore(tmp_path):
  """The released layout has MLP linears as `{'w': array}`, the model bare."""
  model = g4.testing.Gemma4_E2B(tokens='batch.input')
  params = g4.testing.make_checkpoint(model, tmp_path / 'released')
  params = jax.tree.map(jnp.asarray, params)
  state = kd.train.TrainState(
      step=0, params=params, opt_state=None, collections={}
  )
  theirs = gm.ckpts.LoadCheckpoint(path=tmp_path / 'released')
  with pytest.raises(ValueError, match='tree structures do not match'):
    gm.ckpts.SkipLoRA(wrapped=theirs).transform(state)


def test_router_of_26b_a4b_sends_tokens_to_wrong_experts():
  """Against transformers; `hf_parity_test` compares ours."""
  reference = hf_reference.load('moe')
  variables, tokens = {'params': reference.params}, reference.tokens
  theirs = reference.model.apply(variables, tokens).logits
  assert np.abs(theirs - reference.logits).max() > 1


def test_vision_tower_attends_to_padding_patches():
  """Against transformers; `image_parity_test` compares ours."""
  assert not _patch_mask.excludes_masked_keys(_upstream.VisionAttention)
  case = image_cases.load('e_images')
  encoder = case.base.config.vision_encoder

  @jax.jit
  def soft_tokens(images):
    ((tokens, is_real),) = encoder.apply(
        {'params': case.params['vision_encoder']},
        images.patches.reshape(4, 36, -1),
        images.positions_xy.reshape(4, 36, 2),
    )
    return tokens, is_real

  theirs, is_real = soft_tokens(case.images)
  # The first image, of four soft tokens, has no padding.
  error = np.abs(theirs[is_real] - case.soft_tokens)
  assert error[:4].max() < 1e-4
  assert error[4:].max() > 1
  other, _ = soft_tokens(image_cases.far_padding(case.images))
  assert np.abs(other - theirs)[is_real][4:].max() > 1


def test_seq2seq_task_writes_gemma_3s_turns():
  """Whatever the tokenizer."""
  tokenizer = g4.testing.Gemma4Tokenizer()
  row = {'en': 'Hello.', 'fr': 'Bonjour.'}
  settings = dict(
      in_prompt='en', in_response='fr', tokenizer=tokenizer, max_length=64
  )
  theirs = gm.data.Seq2SeqTask(
      out_input='input',
      out_target='target',
      out_target_mask='loss_mask',
      **settings,
  ).map(row)
  ours = g4.data.ChatTask(**settings).map(row)
  assert '<start_of_turn>' in tokenizer.decode(theirs['input'].tolist())
  assert '<|turn>user' in tokenizer.decode(ours['input'].tolist())
