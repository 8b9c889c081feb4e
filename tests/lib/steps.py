"""A step of training on a few tokens, and how to compare two."""

import functools

from gemma import peft
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gemma4_lora import g4
from tests.lib import models
from tests.lib import random_params


def tokens():
  """Two rows, one with padding."""
  tokens = np.random.default_rng(0).integers(3, 1000, (2, 20))
  tokens[1, 13:] = 0
  return jnp.asarray(tokens)


@functools.cache
def wanted(name):
  """A model, its parameters in float64, and its step without any option.

  B is far from zero.
  """
  cut, targets = models.shallow, ['q', 'v', 'down']
  if name == 'Gemma4_26B_A4B':
    cut, targets = models.one_layer, ['q', 'k', 'experts']
  model = models.lora(name, cut=cut, rank=2, targets=targets)
  params = random_params.make(model)
  with jax.enable_x64(True):  # In float32 these models round to 6e-5.
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    return model, params, step(model, params)


@functools.cache
def thin(**kwargs):
  """A model of one dense layer, its parameters, and its step."""
  model = models.lora(cut=models.one_layer, rank=2, targets='q', **kwargs)
  params = random_params.make(model)
  return model, params, step(model, params)


def step(model, params):
  """Loss of the tokens that follow, logits and the LoRA leaves' gradients."""
  original, lora = peft.split_params(params)
  batch = tokens()
  labels, live = batch[:, 1:], batch[:, 1:] > 0

  def loss(lora):
    output = model.apply(
        {'params': peft.merge_params(original, lora)},
        batch,
        is_training_property=True,
        rngs={'dropout': jax.random.key(1)},
    )
    if output.logits is not None:
      losses = optax.softmax_cross_entropy_with_integer_labels(
          output.logits[:, :-1], labels
      )
    else:
      losses = g4.losses.softmax_cross_entropy(
          output.head.hidden[:, :-1],
          output.head.embedding,
          labels,
          soft_cap=output.head.soft_cap,
          chunk_size=16,
      )
    return (losses * live).sum() / live.sum(), output

  (value, output), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(lora)
  return value, output, grads


def assert_same_step(got, wanted, *, rtol):
  np.testing.assert_allclose(got[0], wanted[0], rtol=rtol)
  paths = jax.tree.leaves_with_path(wanted[2])
  for (path, y), x in zip(paths, jax.tree.leaves(got[2]), strict=True):
    error = np.linalg.norm(x - y)
    assert error <= rtol * np.linalg.norm(y), jax.tree_util.keystr(path)
