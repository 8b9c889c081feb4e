"""Hidden states and embedding, in place of the logits."""

from typing import Any

import flax
import jax


@flax.struct.dataclass
class Head:
  """The last hidden states of a model, and what turns them into logits.

  `logits = soft_cap * tanh(hidden @ embedding.T / soft_cap)`: for Gemma's
  262,144 tokens that array is larger than all else in a training step, and
  `g4.losses` never makes it.

  Attributes:
    hidden: `[*B, L, D]`, after the final norm.
    embedding: `[V, D]`, the table that Gemma ties its output to; of a base that
      is quantised its codes and scales, see `g4.quant`.
    soft_cap: Bound of the logits, or None.
  """

  hidden: jax.Array
  embedding: Any
  soft_cap: float | None = flax.struct.field(pytree_node=False, default=None)
