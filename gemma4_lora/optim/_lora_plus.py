"""LoRA+: a larger learning rate for B than for A."""

import math
from typing import Any

import jax
import optax

from gemma4_lora import _trees


def lora_plus(
    optimizer: optax.GradientTransformation, *, lr_ratio: float
) -> optax.GradientTransformationExtraArgs:
  """Trains every B with `lr_ratio` times the learning rate.

  ```python
  optimizer = kd.optim.partial_updates(
      g4.optim.lora_plus(optax.adamw(1e-4), lr_ratio=16),
      mask=kd.optim.select('lora'),
  )
  ```

  The updates of B are those of `optimizer` times `lr_ratio`. Optimizers end
  with a multiplication by the learning rate, so this is a larger learning rate,
  schedules included. Decoupled weight decay grows with it. All other leaves
  keep the updates of `optimizer`.

  B are the leaves at `….lora.<projection>.b`.

  Args:
    optimizer: Any optimizer, learning rate included.
    lr_ratio: Learning rate of B over that of A. The paper's choice is 16.

  Raises:
    ValueError: `lr_ratio` is not a positive number, or, on `init`, the
      parameters that the optimizer is given hold no B.

  References:
    Hayou et al., LoRA+: https://arxiv.org/abs/2402.12354
  """
  if not 0 < lr_ratio < math.inf:
    raise ValueError(f'lr_ratio= takes a positive number. Got: {lr_ratio!r}')
  return optax.chain(optimizer, optax.masked(optax.scale(lr_ratio), _mask))


def _mask(params: Any) -> Any:
  """Returns a tree that is True at every B."""
  mask = jax.tree_util.tree_map_with_path(lambda path, _: _is_b(path), params)
  if not any(jax.tree.leaves(mask)):
    paths = [
        jax.tree_util.keystr(path, simple=True, separator='.')
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    raise ValueError(
        'g4.optim.lora_plus: none of the leaves that it optimizes is a B of'
        ' LoRA (….lora.<projection>.b). Is the model a g4.nn.LoRA, and does'
        f' the mask around it select "lora"? It got {len(paths)} leaves:'
        f' {", ".join(paths[:4]) or "none"}'
    )
  return mask


def _is_b(path: tuple[Any, ...]) -> bool:
  *scope, name = _trees.key_path(path)
  return name == 'b' and _trees.is_lora(tuple(scope))
