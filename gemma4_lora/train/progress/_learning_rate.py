"""The learning rate of a run, from its config.

An optax optimizer is a pair of functions, from which it cannot be read.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import functools
import importlib
import inspect
from typing import Any

import jax
from kauldron import kd
from kauldron import konfig

_CLASS = '__qualname__'  # Where `konfig` keeps it.
_NAME = 'learning_rate'
# Counts steps of its own.
_NOT_WITHIN = ('MultiSteps', 'multi_steps')


def find(trainer: kd.train.Trainer) -> Callable[[int], float] | None:
  """Returns the learning rate of a step.

  Args:
    trainer: The trainer.

  Returns:
    None if the config does not say it: as where it was made of objects, or if
    it has several. Also None if Kauldron writes it, as one of `schedules=`.
  """
  if trainer.schedules or trainer.raw_cfg is None:
    return None
  try:
    found = list(_walk(trainer.raw_cfg.get('optimizer')))
    # Equal numbers count once.
    if not found or any(x != found[0] for x in found):
      return None
    value = found[0]
    if isinstance(value, konfig.ConfigDict):
      value = konfig.resolve(value)
  except Exception:  # pylint: disable=broad-exception-caught
    return None  # Training goes on without it.
  if callable(value):
    return functools.partial(_call, value)
  if not isinstance(value, (int, float)):
    return None
  return lambda step: float(value)


def _call(schedule: Callable[[int], Any], step: int) -> float:
  with jax.transfer_guard('allow'):
    return float(schedule(step))


def _walk(node: Any) -> Iterator[Any]:
  if isinstance(node, (list, tuple)):
    for x in node:
      yield from _walk(x)
  if not isinstance(node, (konfig.ConfigDict, Mapping)):
    return
  name = str(node.get(_CLASS, ''))
  if name.rpartition(':')[2].rpartition('.')[2] in _NOT_WITHIN:
    return
  key = _NAME if _NAME in node else _position(name)
  if key is not None and key in node:
    yield node[key]
    return
  for x in node.values():
    yield from _walk(x)


@functools.cache
def _position(qualname: str) -> str | None:
  """Returns where a function's argument stands, if it is given by position."""
  module, _, attributes = qualname.partition(':')
  try:
    function: Any = importlib.import_module(module)
    for name in attributes.split('.'):
      function = getattr(function, name)
    names = list(inspect.signature(function).parameters)
  except (ImportError, AttributeError, TypeError, ValueError):
    return None
  return str(names.index(_NAME)) if _NAME in names else None
