"""Base of tasks that make an example of each row, or leave the row out."""

import abc
from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from gemma4_lora.data import _malformed
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.rules import _rules


@dataclasses.dataclass(kw_only=True, frozen=True)
class RowTask(abc.ABC):
  """A grain transform whose rows may be malformed.

  Attributes:
    drop_inputs: Whether to remove the input keys.
    max_malformed: How many rows may be left out, see `ChatTask`.
  """

  drop_inputs: bool = True
  max_malformed: float = 0

  def map(self, element: Any) -> Any:
    """Returns the example with the output fields, and without the inputs.

    Returns None, which grain leaves out, for a malformed row within the limit.
    """
    read = self.or_none(self._read, element)
    if read is None:
      return None
    element, fields = read
    for key, value in fields.items():
      _fields.put(element, key, value)
    return element

  def or_none[T](self, read: Callable[[Any], T], element: Any) -> T | None:
    """Returns the result of `read`; None for a malformed row within the limit.

    Any exception counts as malformed: libraries that decode a row have errors
    of their own.

    Args:
      read: Reads the row.
      element: The row.

    Raises:
      ValueError: The task is not set up right, or too many rows are malformed.
      KeyError: A field is missing, and `max_malformed` is 0.
    """
    self._check()
    try:
      value = read(element)
    except MemoryError:
      raise  # The machine's fault, not the row's.
    except Exception as e:
      self.malformed.add_malformed(element, e)
      return None
    self.malformed.add()
    return value

  @abc.abstractmethod
  def fields(self, element: Any) -> dict[str, Any]:
    """Returns the output fields of an example.

    Raises:
      ValueError: It cannot be trained on.
      KeyError: It lacks a field.
    """

  @property
  def malformed(self) -> _malformed.Counter:
    """Counts the rows that were read in this process, and the malformed."""
    counter = self.__dict__.get('malformed')
    if counter is None:
      counter = _malformed.Counter(
          name=type(self).__name__, limit=self.max_malformed
      )
      # Grain reads in threads: the first one sets it.
      counter = self.__dict__.setdefault('malformed', counter)
    return counter

  def _read(self, element: Any) -> tuple[Any, dict[str, Any]]:
    """Returns a copy of the row, without inputs, and its output fields."""
    fields = self.fields(element)
    keys = self._in_keys if self.drop_inputs else ()
    return _fields.without(element, keys), fields

  def __getstate__(self) -> dict[str, Any]:
    # Each worker counts its own.
    return {k: v for k, v in self.__dict__.items() if k != 'malformed'}

  @property
  @abc.abstractmethod
  def _in_keys(self) -> list[str]:
    """Keys of the input fields."""

  @abc.abstractmethod
  def _check(self) -> None:
    """Raises for errors of the task, not of a row."""


@dataclasses.dataclass(kw_only=True, frozen=True)
class ConversationTask(RowTask):
  """A task whose rows are conversations, and the rules for these.

  Attributes:
    empty_answers: See `ChatTask`, also for the others.
    inline_markup: How thoughts and calls in texts are treated.
    null_arguments: How nulls in tool arguments are treated.
    allowed_tags: Control tokens whose names texts may have.
  """

  empty_answers: str = 'refuse'
  inline_markup: str = 'refuse'
  null_arguments: str = 'schema'
  allowed_tags: Sequence[str] = ()

  @functools.cached_property
  def rules(self) -> _rules.Rules:
    """The rules for a conversation.

    Raises:
      ValueError: An argument has an invalid value.
    """
    return _rules.Rules(
        empty_answers=self.empty_answers,
        inline_markup=self.inline_markup,
        null_arguments=self.null_arguments,
        allowed_tags=tuple(self.allowed_tags),
    )
