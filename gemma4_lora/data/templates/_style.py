"""How tasks and samplers render conversations."""

import dataclasses

from gemma4_lora.data.conversations import _choices
from gemma4_lora.data.templates import _templates

_CHOICES = {
    'thinking': ('keep', 'mask', 'strip', 'strip_all', 'empty'),
    'loss_on': ('all', 'last'),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
  """How conversations are rendered, the same in all tasks.

  Attributes:
    thinking: How thoughts are treated.
    loss_on: Which of the model's turns are trained.
    template: A name of `_templates`.
    enable_thinking: Whether the system turn has `<|think|>`.
  """

  thinking: str = 'keep'
  loss_on: str = 'all'
  template: str = 'dialog'
  enable_thinking: bool = False

  def __post_init__(self):
    for name, choices in _CHOICES.items():
      _choices.check_choice(name, getattr(self, name), choices)
    _templates.check(self.template)
    if self.enable_thinking and self.thinking == 'empty':
      raise ValueError(
          "thinking='empty' is the block of a model that should not think:"
          ' enable_thinking=True contradicts it. Drop one of the two.'
      )
