"""How tasks and samplers render conversations."""

from collections.abc import Mapping
import dataclasses
from typing import Any

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
    template: A name of `_templates`, or a path.
    enable_thinking: Whether the system turn has `<|think|>`.
    template_kwargs: Further arguments of the template.
    trains_silence: Whether a turn is trained to end right behind a tool's
      answer. Google's templates write no end of the turn there.
  """

  thinking: str = 'keep'
  loss_on: str = 'all'
  template: str = 'dialog'
  enable_thinking: bool = False
  template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  trains_silence: bool = False

  def of_row(self, kwargs: Mapping[str, Any]) -> 'Style':
    """Returns the style of a row that has arguments of its own.

    Raises:
      ValueError: The template has no such argument.
    """
    if not kwargs:
      return self
    kwargs = {**self.template_kwargs, **kwargs}
    thinks = kwargs.get('enable_thinking', self.enable_thinking)
    if not self.has_file:
      kwargs.pop('enable_thinking', None)
    thinking = 'strip' if thinks and self.thinking == 'empty' else self.thinking
    return dataclasses.replace(
        self,
        thinking=thinking,
        enable_thinking=thinks,
        template_kwargs=kwargs,
    )

  def __post_init__(self):
    for name, choices in _CHOICES.items():
      _choices.check_choice(name, getattr(self, name), choices)
    _templates.check(self.template, self.template_kwargs)
    if self.enable_thinking and self.thinking == 'empty':
      raise ValueError(
          "thinking='empty' is the block of a model that should not think:"
          ' enable_thinking=True contradicts it. Drop one of the two.'
      )
    if self.has_file and self.thinking == 'empty':
      raise ValueError(
          "thinking='empty' writes the empty thought of the larger models, and"
          f' template={self.template!r} writes it itself where its server does.'
          " Write thinking='strip_all'."
      )

  @property
  def has_file(self) -> bool:
    """Whether the template is one of a file."""
    return _templates.is_path(self.template)
