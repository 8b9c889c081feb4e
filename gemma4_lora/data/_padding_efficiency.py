"""Metrics of the data."""

import dataclasses

import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron import kontext


@dataclasses.dataclass(eq=True, frozen=True, kw_only=True)
class PaddingEfficiency(kd.metrics.Metric):
  """Share of the tokens that are not padding: 1 is best.

  ```python
  train_metrics={
      "padding_efficiency": g4.data.PaddingEfficiency(tokens="batch.input"),
  },
  ```

  Attributes:
    tokens: Key of the tokens, in which 0 is padding. The key of a loss mask
      gives the share that is trained.
  """

  tokens: kontext.Key = kontext.REQUIRED

  State = kd.metrics.AverageState  # pyrefly: ignore[bad-override]

  def get_state(  # pyrefly: ignore[bad-override]: by names, as Kauldron's.
      self, *, tokens: jax.Array
  ) -> kd.metrics.AverageState:
    """Returns the state of a batch.

    Args:
      tokens: Integers or bools, of any shape.
    """
    return self.State.from_values(values=(tokens != 0).astype(jnp.float32))
