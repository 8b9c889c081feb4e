"""Losses without a token to count, because a mask is zero everywhere."""

from collections.abc import Iterator
from typing import Any

import jax
from kauldron import kd
from kauldron.losses import base as losses_base
import numpy as np

_is_state = kd.metrics.State.isinstance


def uncounted(states: Any) -> Iterator[str]:
  """Yields the names of losses that are a mean over nothing.

  Args:
    states: States of losses, by name; None for one that was not computed.
  """
  for path, x in jax.tree_util.tree_leaves_with_path(states, is_leaf=_is_state):
    if isinstance(x, losses_base.AllReduceMean) and not np.any(x.count):
      yield jax.tree_util.keystr(path, simple=True, separator='.')
