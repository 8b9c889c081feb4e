"""Logits behind an image: gemma alone drops some of them."""

import dataclasses
import functools

from flax import linen as nn
from gemma import gm
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.gemma4 import _upstream
from tests.lib import models
from tests.lib import multimodal
from tests.lib import random_params
from tests.lib import sampling

_BEGIN_OF_IMAGE = 255999


_model = functools.partial(
    models.lora,
    cut=models.one_layer,
    text_only=False,
    rank=3,
    targets=['text', 'vision', 'multimodal_projections'],
)


def _zero_b(params):
  return jax.tree_util.tree_map_with_path(
      lambda path, x: jnp.zeros_like(x)
      if 'lora' in str(path) and path[-1].key == 'b'
      else x,
      params,
  )


def _inputs():
  """Two images, each between its begin and end, and text on either side."""
  inputs = multimodal.inputs(audio=False)
  tokens = np.array(inputs['tokens'])  # -2 at 2, 3 and 6.
  tokens[0, [1, 5]] = _BEGIN_OF_IMAGE
  return inputs | {'tokens': tokens}


def test_each_token_has_its_own():
  """Those of each prefix's last token, which samplers ask for.

  gemma alone gives other tokens' logits, and NaN: once it does not, the repair
  may go.
  """
  model = _model('Gemma4_E2B')
  params = random_params.with_towers(model)
  inputs = _inputs()
  tokens = inputs.pop('tokens')

  @jax.jit
  def last(params, tokens):
    return model.apply(
        {'params': params}, tokens, **inputs, return_last_only=True
    ).logits[0]

  @jax.jit
  def whole(params):
    return model.apply(
        {'params': params},
        jnp.asarray(tokens),
        **inputs,
        return_hidden_states=True,
    )

  for values in (params, _zero_b(params)):
    out = whole(values)
    assert out.logits.shape == (1, 18, 1024)
    # Of text before, between and behind the images.
    for position in (0, 4, 7, 8, 12, 17):
      # Zeros are padding: one length, one compilation.
      prefix = np.where(np.arange(18) <= position, tokens, 0)
      want = last(values, jnp.asarray(prefix))
      np.testing.assert_allclose(
          out.logits[0, position], want, atol=1e-4, err_msg=position
      )
    assert np.isfinite(out.hidden_states).all()
    assert out.hidden_states.shape == (1, 18, model.config.embed_dim)

  @jax.jit
  def plain(params):
    variables = {'params': params}
    return model.model.apply(variables, jnp.asarray(tokens), **inputs).logits

  assert np.isnan(plain(params)[0, 8:]).all()


def test_without_images_they_are_the_base_model_s():
  """A begin-of-image token without an image is a token as any other."""
  model = _model('Gemma4_31B')
  params = _zero_b(random_params.with_towers(model))
  tokens = jnp.asarray(np.abs(_inputs()['tokens']))

  def logits(model):
    # As users compile it: at the level of tests, in float32, two programs round
    # otherwise.
    apply = jax.jit(
        lambda params: model.apply({'params': params}, tokens).logits,
        compiler_options={'xla_backend_optimization_level': 3},
    )
    return apply(params)

  np.testing.assert_array_equal(logits(model), logits(model.model))
  # What samplers read is the model's own.
  assert model.config.input_config == model.model.config.input_config
  assert model.vision_encoder is model.model.config.vision_encoder


def test_answers_to_one_prompt_share_its_images():
  """Tokens `B A L`, images of `B`: as images of each, and encoded once."""
  model = _model('Gemma4_31B')
  params = random_params.with_towers(model)
  inputs = _inputs()
  tokens = np.tile(inputs['tokens'], (2, 2, 1))
  tokens[:, 1, -4:] += 5
  images = jax.tree.map(lambda x: jnp.concatenate([x, x * 1]), inputs['images'])
  images = dataclasses.replace(
      images, patches=images.patches.at[1].multiply(0.5)
  )
  each = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), images)
  encoded = []

  def note(next_fun, args, kwargs, context):
    is_encoder = isinstance(context.module, _upstream.VisionEncoder)
    if is_encoder and context.method_name == '__call__':
      encoded.append(args[0].shape)
    return next_fun(*args, **kwargs)

  @jax.jit
  def logits(tokens, images):
    with nn.intercept_methods(note):
      return model.apply({'params': params}, tokens, images=images).logits

  got = logits(jnp.asarray(tokens), images)
  assert got.shape == (2, 2, 18, 1024)
  assert {shape[0] for shape in encoded} == {4}  # Two of each prompt.
  want = logits(jnp.asarray(tokens.reshape(4, 18)), each)
  np.testing.assert_allclose(
      got.reshape(want.shape), want, rtol=1e-4, atol=1e-4
  )
  assert np.abs(got[0] - got[1]).max() > 1e-2  # The images say which.


def test_patches_that_the_tower_would_pool_otherwise():
  model = _model('Gemma4_31B')
  inputs = _inputs()
  inputs['images'] = jax.tree.map(lambda x: x[:, ::2], inputs['images'])
  with pytest.raises(
      ValueError, match='18 patches each, .* takes 36, .* max_soft_tokens=4, of'
  ):
    jax.eval_shape(model.init, jax.random.key(0), **inputs)


def test_a_second_call_traces_nothing():
  """Though the copy of the vision encoder is another object at each call."""
  model = _model('Gemma4_31B')
  params = random_params.with_towers(model)
  inputs = _inputs()
  inputs['tokens'] = jnp.asarray(inputs['tokens'])
  traced = []

  def note(next_fun, args, kwargs, context):
    traced.append(context.module.name)
    return next_fun(*args, **kwargs)

  with nn.intercept_methods(note):
    jax.eval_shape(lambda: model.apply({'params': params}, **inputs))
    assert 'layer_0' in traced
    traced.clear()
    jax.eval_shape(lambda: model.apply({'params': params}, **inputs))
  assert 'layer_0' not in traced


def test_a_chat_about_an_image(tmp_path):
  """Greedy text of the sampler is the argmax of one forward pass over it.

  The image is padded, as most are.
  """
  tokenizer = g4.testing.make_tokenizer(tmp_path / 'x.model', vocab_size=262144)
  model = _model('Gemma4_E2B')  # Takes larger tokens for its last.
  params = random_params.with_towers(model)
  sampler = sampling.sampler(
      model,
      params,
      cls=gm.text.Gemma4Sampler,
      tokenizer=tokenizer,
      patch_size=4,
      max_soft_tokens=4,
  )
  image = np.random.default_rng(0).integers(0, 255, (24, 12, 3), np.uint8)
  prompt = '<|turn>user\nDescribe <|image|> now<turn|>\n<|turn>model\n'
  out = sampler.sample(
      prompt, images=[image], max_new_tokens=6, return_state=True
  )
  new = np.asarray(out.state.predicted_tokens[0][:6])
  new = new[new != 0]

  images = sampler._preprocess_images([image])
  assert np.any(images.positions_xy == -1)
  (soft_tokens,) = images.soft_token_counts
  expanded = [108, 255999, *[-2] * soft_tokens, 258882, 108]
  tokens = []
  for token in tokenizer.encode(prompt, add_bos=True):
    tokens += expanded if token == 258880 else [token]
  logits = model.apply(
      {'params': params},
      jnp.asarray([[*tokens, *new]]),
      images=images,
  ).logits
  forbidden = list(tokenizer.FORBIDDEN_TOKENS)
  logits = logits[0, len(tokens) - 1 : -1].at[:, forbidden].set(-jnp.inf)
  assert soft_tokens > 1
  assert len(new) > 1
  np.testing.assert_array_equal(np.argmax(logits, axis=-1), new)
