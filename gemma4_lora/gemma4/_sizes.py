"""The sizes of Gemma 4: one row each, from which all lists of them follow.

To add one, add its row here, its class where the row says, and its tiny twin in
`testing._models`. Importing this imports no gemma.
"""

import dataclasses
import importlib
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
  """One released model.

  Attributes:
    name: The name of its class, and of its tiny twin in `g4.testing`.
    namespace: Where users find the class: `gm.nn` or `g4.nn`.
    module: Where the class is.
  """

  name: str
  namespace: str = 'gm.nn'
  module: str = 'gemma.gm.nn'

  @property
  def cls(self) -> Any:
    """The class of the model."""
    return getattr(importlib.import_module(self.module), self.name)


SIZES = (
    Size(name='Gemma4_E2B'),
    Size(name='Gemma4_E4B'),
    Size(name='Gemma4_31B'),
    Size(name='Gemma4_26B_A4B'),
)
NAMES = tuple(size.name for size in SIZES)


def listed() -> str:
  """Returns how users write the classes: `gm.nn.Gemma4_E2B, … or …`."""
  *names, last = (f'{size.namespace}.{size.name}' for size in SIZES)
  return f'{", ".join(names)} or {last}'
