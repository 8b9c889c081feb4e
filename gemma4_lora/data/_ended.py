"""Batches whose end is an error with a message; Kauldron's is an empty one."""

import dataclasses
import functools
from typing import Any
from typing import Self

from grain import python as grain
from kauldron import kd
from kauldron.data import iterators

from gemma4_lora.data import _pipeline

# `g4.train.TrainStep` sees it in advance only if it can count the data, which
# it cannot behind a filter.
MESSAGE = (
    'train_ds ended before num_train_steps: set its num_epochs=None, to repeat'
    ' it, or fewer steps.'
)


_EMPTY = (
    'train_ds has no batch: {why}. Look at its rows by `gemma4_lora show`, or'
    ' g4.data.show.'
)
_NO_ROW = 'its filters and tasks drop all rows'
_TOO_FEW = 'its filters leave fewer rows than batch_size={size}, or none'


class EndedError(ValueError):
  """The batches of a run ended before the run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches(iterators.Iterator):
  """Kauldron's iterator of a run, saved and restored as it is.

  Attributes:
    inner: The iterator of the batches.
    then: The advice in the message on how to go on.
    error: Which error the end is. With `StopIteration`, a loop over the batches
      just ends.
  """

  inner: iterators.Iterator
  then: str = ''
  error: type[Exception] = EndedError

  def __next__(self) -> Any:
    try:
      return next(self.inner)
    except StopIteration:
      raise self.error(f'{MESSAGE}{self.then}') from None

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
  found |= {
      name: dataclasses.replace(x, then=then, error=EndedError)
      for name, x in fields.items()
      if isinstance(x, Batches) and x.error is StopIteration
  }
  return item._replace(**found) if found else item


def says_so(ds: Any) -> Any:
  """Returns a dataset of Kauldron's that says what it lacks.

  Where it has no batch at all, and where it ends, to who asks for one more.

  Args:
    ds: A `kd.data.Pipeline`; anything else stays as it is.
  """
  if not isinstance(ds, kd.data.Pipeline) or isinstance(ds, _SaysSo):
    return ds
  new = object.__new__(_class(type(ds)))
  vars(new).update(vars(ds))
  return new


class _SaysSo:
  """Comes before a class of Kauldron's."""

  num_epochs: int | None

  @property
  def element_spec(self) -> Any:
    why = _TOO_FEW.format(size=getattr(self, 'batch_size', None))
    try:
      if _repeats_filtered(self):
        why = _NO_ROW
        _check_has_row(self)
      return super().element_spec  # pyrefly: ignore[missing-attribute]
    except StopIteration:
      raise EndedError(_EMPTY.format(why=why)) from None

  def __iter__(self) -> Batches:
    source: Any = self
    inner = super().__iter__()  # pyrefly: ignore[missing-attribute]
    return Batches(source=source, inner=inner, error=StopIteration)


@functools.cache
def _class(cls: type[Any]) -> type[Any]:
  # By the same name: it is shown where a config is.
  names = {'__module__': cls.__module__, '__qualname__': cls.__qualname__}
  return type(cls.__name__, (_SaysSo, cls), names)


def _repeats_filtered(ds: Any) -> bool:
  """Whether rows are looked for without end, which none may be."""
  return (
      isinstance(ds, kd.data.py.PyGrainPipeline)
      and ds.num_epochs is None
      and any(isinstance(x, grain.FilterTransform) for x in _pipeline.walk(ds))
  )


def _check_has_row(ds: Any) -> None:
  """Raises StopIteration if all rows are dropped."""
  once = dataclasses.replace(ds, num_epochs=1, batch_size=None, num_workers=0)
  next(iter(once))
