"""The objects of a data pipeline: sources, transforms, tokenizers."""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any


@functools.singledispatch
def walk(x: Any) -> Iterator[Any]:
  """Yields an object, and all objects in its fields and containers."""
  yield x
  if dataclasses.is_dataclass(x) and not isinstance(x, type):
    for field in dataclasses.fields(x):
      if field.init and hasattr(x, field.name):
        yield from walk(vars(x).get(field.name))


@walk.register(list)
@walk.register(tuple)
def _(x) -> Iterator[Any]:
  for item in x:
    yield from walk(item)


@walk.register(Mapping)
def _(x) -> Iterator[Any]:
  for item in x.values():
    yield from walk(item)
