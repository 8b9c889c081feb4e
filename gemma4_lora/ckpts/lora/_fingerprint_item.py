"""The fingerprint as an item of a checkpoint, written when all digests are known."""

from collections.abc import Callable
from collections.abc import ItemsView
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp


def save_args(make: Callable[[], Mapping[str, Any]]) -> ocp.args.JsonSave:
  """Returns how Orbax should save it.

  Args:
    make: Returns the content of the file. It is called in the background, while
      arrays are written.
  """
  return ocp.args.JsonSave(_Later(make))


class _Later(dict[str, Any]):
  """An object of JSON that is made when it is written.

  Orbax calls `json.dumps` in a thread. For subclasses of dict it calls
  `items()`, and the dict must not be empty.
  """

  def __init__(self, make: Callable[[], Mapping[str, Any]]):
    super().__init__(is_made=False)
    self._make = make

  def items(self) -> ItemsView[str, Any]:  # pyrefly: ignore[bad-override]
    return self._make().items()
