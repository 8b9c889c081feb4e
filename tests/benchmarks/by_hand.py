"""The ideal step, by hand: what all others are measured against.

Gradients of LoRA's leaves alone, by `jax.grad` of a plain function; the loss in
chunks of tokens, without an array of all logits; Adam. No trainer, no
checkpoints, no metrics.
"""

from collections.abc import Callable
import functools
from typing import Any

from gemma import peft
import jax
import jax.numpy as jnp
import optax

_CHUNK = 256  # In tokens.


def make_step(model: Any, optimizer: Any) -> Callable[..., Any]:
  """Returns `(lora, opt_state), base, batch -> (lora, opt_state), loss`."""
  soft_cap = model.config.final_logit_softcap

  def loss_fn(lora, base, batch):
    params = peft.merge_params(base, lora)
    output = model.apply(
        {'params': params}, batch['input'], return_hidden_states=True
    )
    table = params['embedder']['input_embedding']
    return _cross_entropy(
        output.hidden_states, table, batch['target'][..., 0], soft_cap
    )

  @functools.partial(jax.jit, donate_argnums=0)
  def step(trained, base, batch):
    lora, opt_state = trained
    loss, grads = jax.value_and_grad(loss_fn)(lora, base, batch)
    updates, opt_state = optimizer.update(grads, opt_state, lora)
    return (optax.apply_updates(lora, updates), opt_state), loss

  return step


def _cross_entropy(hidden, table, labels, soft_cap):
  """The mean, of which the backward pass computes logits once more."""
  hidden = hidden.reshape(-1, hidden.shape[-1])
  chunk = min(_CHUNK, hidden.shape[0])

  @jax.checkpoint
  def of_chunk(total, xs):
    hidden, labels = xs
    logits = jax.lax.dot_general(hidden, table, (((1,), (1,)), ((), ())))
    logits = soft_cap * jnp.tanh(logits.astype(jnp.float32) / soft_cap)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return total + losses.sum(), None

  chunks = hidden.reshape(-1, chunk, hidden.shape[-1]), labels.reshape(
      -1, chunk
  )
  total, _ = jax.lax.scan(of_chunk, jnp.zeros(()), chunks)
  return total / labels.size
