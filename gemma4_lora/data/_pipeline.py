"""What a pipeline of data is made of."""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any


@functools.singledispatch
def parts(x: Any) -> Iterator[Any]:
  """Gives an object and what its fields hold, down to the leaves."""
  yield x
  if dataclasses.is_dataclass(x) and not isinstance(x, type):
    for field in dataclasses.fields(x):
      if field.init and hasattr(x, field.name):
        yield from parts(vars(x).get(field.name))


@parts.register(list)
@parts.register(tuple)
def _(x) -> Iterator[Any]:
  for item in x:
    yield from parts(item)


@parts.register(Mapping)
def _(x) -> Iterator[Any]:
  for item in x.values():
    yield from parts(item)
