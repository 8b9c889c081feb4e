"""Transforms before a task, which skip rows that could not be read.

The task counts such a row as malformed. A transform before the task would not
find its fields, raise, and end the run; so it is skipped for such rows. The
output of a transform has the origin of its input.
"""

from collections.abc import Iterable
from typing import Any

from grain import python as grain
from kauldron import kd

from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.sources import _origins


def before_task(transforms: Iterable[Any]) -> list[Any]:
  """Returns the transforms, each skipped for rows that could not be read.

  Args:
    transforms: Transforms of a dataset, of grain or Kauldron. Without a task of
      `g4.data`, which would count such rows, they stay as they are.
  """
  transforms = list(transforms)
  # Recognised by its attributes: tasks are in a room above.
  tasks = [i for i, x in enumerate(transforms) if hasattr(type(x), 'malformed')]
  if not tasks:
    return transforms
  return [*map(passed, transforms[: tasks[0]]), *transforms[tasks[0] :]]


def passed(transform: Any) -> Any:
  """Returns a transform that is skipped for rows that could not be read."""
  if isinstance(transform, grain.FilterTransform | kd.data.FilterTransform):
    return _Filter(transform)
  if isinstance(transform, grain.RandomMapTransform):
    return _RandomMap(transform)
  if isinstance(transform, grain.MapTransform | kd.data.MapTransform):
    return _Map(transform)
  return transform  # Slices, batches and others, which do not look into rows.


def _has_passed(row: Any) -> bool:
  return isinstance(row, _fields.Broken)


class _Map(grain.MapTransform):

  def __init__(self, transform: Any):
    self._transform = transform

  def map(self, element: Any) -> Any:
    if _has_passed(element):
      return element
    return _origins.moved(element, self._transform.map(element))


class _RandomMap(grain.RandomMapTransform):

  def __init__(self, transform: Any):
    self._transform = transform

  def random_map(self, element: Any, rng: Any) -> Any:
    if _has_passed(element):
      return element
    return _origins.moved(element, self._transform.random_map(element, rng))


class _Filter(grain.FilterTransform):

  def __init__(self, transform: Any):
    self._transform = transform

  def filter(self, element: Any) -> bool:
    return _has_passed(element) or self._transform.filter(element)
