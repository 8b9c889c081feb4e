"""Answers that are good or bad, each by itself, to tokens and masks."""

import dataclasses
from typing import Any

from etils import enp
from kauldron import kd
import numpy as np

from gemma4_lora.data.conversations import _same_prompt
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.preferences import _answers_task

_LABELS = {True: True, False: False, 'true': True, 'false': False}


@dataclasses.dataclass(kw_only=True, frozen=True)
class UnpairedTask(_answers_task.AnswersTask):
  """Answers with a label, as KTO takes them: good or bad, not better or worse.

  ```python
  # Before:
  {"prompt": "2 + 2?", "completion": "4.", "label": True}
  # After, with max_length=16:
  {
      "input": i32[16],
      "target": i32[16],  # input, one step ahead
      "loss_mask": bool[16],  # True for the answer and its `<turn|>`
      "label": bool[],
  }
  ```

  Prompts and answers are those of `PreferenceTask`: with `in_prompt=None` the
  answer is a whole conversation, and the label that of the model's last turn.

  This reads the rows. `g4.losses` has no loss for them: cross-entropy with
  `loss_mask` would learn the bad answers as well.

  Attributes:
    layout: See `ChatTask`.
    in_prompt: Key of the prompt.
    in_completion: Key of the answer.
    in_label: Key of the label: a bool, 0 or 1, `"true"` or `"false"`.
    in_system: See `ChatTask`.
    in_tools: See `ChatTask`.
    in_images: See `ChatTask`, also for the next three.
    max_images: See `ChatTask`.
    max_soft_tokens: See `ChatTask`.
    patch_size: See `ChatTask`.
    out_input: Key to write the model's input to.
    out_target: Key to write the labels of tokens to.
    out_target_mask: Key to write the mask of the answer to.
    out_images: See `ChatTask`.
    out_label: Key to write whether the answer is good to.
    drop_inputs: Whether to remove the input keys.
    tokenizer: A Gemma 4 tokenizer.
    max_length: Length of the outputs, in tokens.
    truncate: Whether to cut longer ones at the end. If False they are an error.
    thinking: See `ChatTask`.
    template: See `ChatTask`.
    enable_thinking: See `ChatTask`; rows may say it, too.
    template_kwargs: See `ChatTask`.
    empty_answers: See `ChatTask`, also for the next three.
    inline_markup: See `ChatTask`.
    null_arguments: See `ChatTask`.
    allowed_tags: See `ChatTask`.
    max_malformed: See `ChatTask`.
  """

  in_completion: kd.kontext.Key = 'completion'
  in_label: kd.kontext.Key = 'label'
  out_label: kd.kontext.Key = 'label'

  def fields(self, element: Any) -> dict[str, Any]:
    """Returns the output fields of an example.

    Raises:
      ValueError: It cannot be trained on.
      KeyError: It lacks a field.
    """
    conversation = self.answered(element, self.in_completion)
    _same_prompt.check_answered(conversation, field=self.in_completion)
    label = _label(_fields.get(element, self.in_label), field=self.in_label)
    arrays, others = self.arrays(element, [conversation])
    arrays = {key: value[0] for key, value in arrays.items()}
    return arrays | others | {self.out_label: np.asarray(label)}

  def field_specs(self, max_length: int | None = None) -> dict[str, Any]:
    """Returns the shapes of the output fields; see `ChatTask.field_specs`."""
    label = enp.ArraySpec(shape=(), dtype=np.dtype(np.bool_))
    specs = self.array_specs(max_length or self.max_length)
    return specs | {self.out_label: label}

  @property
  def _in_answers(self) -> tuple[str, ...]:
    return self.in_completion, self.in_label


def _label(value: Any, *, field: str) -> bool:
  if isinstance(value, np.ndarray) and value.ndim == 0:
    value = value.item()
  if isinstance(value, str):
    value = value.strip().lower()
  if not isinstance(value, bool | int | float | str) or value not in _LABELS:
    raise ValueError(
        f'Field {field!r} should be true or false: whether the answer is good.'
        f' Got: {_fields.short(value)}'
    )
  return _LABELS[value]
