"""Batches whose end is an error with a message; Kauldron's is an empty one."""

import dataclasses
from typing import Any
from typing import Self

from kauldron.data import iterators

# `g4.train.TrainStep` sees it in advance only if it can count the data, which
# it cannot behind a filter.
MESSAGE = (
    'train_ds ended before num_train_steps: set its num_epochs=None, to repeat'
    ' it, or fewer steps.'
)


class EndedError(ValueError):
  """The batches of a run ended before the run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches(iterators.Iterator):
  """Kauldron's iterator of a run, saved and restored as it is.

  Attributes:
    inner: The iterator of the batches.
    then: The advice in the message on how to go on.
  """

  inner: iterators.Iterator
  then: str = ''

  def __next__(self) -> Any:
    try:
      return next(self.inner)
    except StopIteration:
      raise EndedError(f'{MESSAGE}{self.then}') from None

  def __kd_ocp_handlers__(self) -> Any:
    return self.inner.__kd_ocp_handlers__()

  def __kd_ocp_save_args__(self) -> Any:
    return self.inner.__kd_ocp_save_args__()

  def __kd_ocp_restore_args__(self) -> Any:
    return self.inner.__kd_ocp_restore_args__()

  def __kd_ocp_restore_post__(self, value: Any) -> Self:
    inner = self.inner.__kd_ocp_restore_post__(value)
    return dataclasses.replace(self, inner=inner)


def explained(item: Any, *, then: str) -> Any:
  """Returns an item of Kauldron's trainer, with a message at the data's end.

  Args:
    item: A `CheckpointState`, or anything else, which stays as it is.
    then: The advice in the message on how to go on.
  """
  fields = getattr(item, '_asdict', dict)()
  found = {
      name: Batches(source=x.source, inner=x, then=then)
      for name, x in fields.items()
      if isinstance(x, iterators.Iterator) and not isinstance(x, Batches)
  }
  return item._replace(**found) if found else item
