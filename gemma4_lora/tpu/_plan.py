"""A plan: its numbers, as text, HTML and JSON."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from gemma4_lora.tpu import _chips
from gemma4_lora.tpu import _compile
from gemma4_lora.tpu import _plan_numbers
from gemma4_lora.tpu import _plan_report
from gemma4_lora.tpu.program import _cost
from gemma4_lora.tpu.program import _exchanges


class Plan(_plan_numbers.PlanNumbers):
  """Memory and time of a training step on a topology, and whether it fits.

  Prints as a table, and renders in a notebook with a bar for the memory of one
  device. All sizes and rates are per device. The fields, and the properties
  that follow from them, such as `fits`, `peak_bytes` and `step_seconds`, are
  those of `PlanNumbers`.
  """

  def to_json(self) -> dict[str, Any]:
    """Returns what `from_json` takes."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'Plan':
    """Returns the plan that `to_json` was called on."""

    def maybe(of, value):
      return None if value is None else of(**value)

    fields: dict[str, Any] = dict(values)
    fields |= {
        'chip': _chips.Chip(**values['chip']),
        'memory': maybe(_compile.Memory, values['memory']),
        'too_large': maybe(_compile.TooLarge, values['too_large']),
        'cost': maybe(_cost.Cost, values['cost']),
        'collectives': tuple(
            _exchanges.Collective(**x) for x in values['collectives']
        ),
        'advice': tuple(values['advice']),
        'notes': tuple(values['notes']),
    }
    return cls(**fields)

  def __str__(self) -> str:
    return _plan_report.as_text(self)

  __repr__ = __str__

  def _repr_html_(self) -> str:
    return _plan_report.as_html(self)
