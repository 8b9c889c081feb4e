"""Which fields of a row hold a conversation."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from absl import logging
from kauldron import kd

# Usual names of columns that only an argument of a task reads.
ARGUMENTS = {'system': 'in_system', 'tools': 'in_tools', 'images': 'in_images'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
  """Keys of the fields of a conversation; for the attributes see `ChatTask`.

  Each layout reads some of them.
  """

  in_prompt: kd.kontext.Key
  in_response: kd.kontext.Key
  in_messages: kd.kontext.Key | None
  in_system: kd.kontext.Key | None
  in_tools: kd.kontext.Key | None
  in_template_kwargs: kd.kontext.Key | None = None
  in_enable_thinking: kd.kontext.Key | None = None

  @property
  def of_template(self) -> list[kd.kontext.Key]:
    """Keys of what rows say of their template, where they do."""
    keys = (self.in_template_kwargs, self.in_enable_thinking)
    return [key for key in keys if key is not None]


def warn_of_unread(row: Any, columns: Mapping[str, str]) -> None:
  """Says once that rows have columns that nothing reads.

  Args:
    row: A row.
    columns: The arguments that would read them, by the column's name.
  """
  if not isinstance(row, Mapping):
    return  # The layout says so.
  found = [x for x in columns if _is_filled(row.get(x))]
  if found:
    logging.log_first_n(
        logging.WARNING,
        'The rows have the fields %s, which are not read. To train with them,'
        ' write %s. Said once.',
        1,
        found,
        ', '.join(f'{columns[x]}={x!r}' for x in found),
    )


def _is_filled(value: Any) -> bool:
  # Of an array, the truth of its numbers is not asked.
  return value is not None and (not hasattr(value, '__len__') or len(value) > 0)
