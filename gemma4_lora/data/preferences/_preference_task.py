"""Pairs of a preferred and a rejected answer, to tokens and masks."""

import dataclasses
from typing import Any

from kauldron import kd
import numpy as np

from gemma4_lora.data.conversations import _same_prompt
from gemma4_lora.data.preferences import _answers_task


@dataclasses.dataclass(kw_only=True, frozen=True)
class PreferenceTask(_answers_task.AnswersTask):
  """Pairs for DPO, rendered as `ChatTask` renders conversations.

  ```python
  # Before:
  {"prompt": "2 + 2?", "chosen": "4.", "rejected": "22."}
  # After, with max_length=16:
  {
      "input": i32[2 16],  # Chosen, rejected.
      "target": i32[2 16],  # input, one step ahead
      "loss_mask": bool[2 16],  # True for the answer and its `<turn|>`
  }
  ```

  `g4.losses.DpoLoss` and `gm.losses.DpoLoss` take these. The mask is on the
  last turn of the model.

  Layouts are those of `ChatTask`. A prompt is a text or a list of messages, at
  `in_prompt`. An answer is a text, a message, a list of messages, or a whole
  conversation that begins with the prompt. With `in_prompt=None` both answers
  are whole conversations.

  A prompt that a row repeats is taken once. The copies may differ in white
  space, in fields that are None, in ids of calls, in lists of parts, and in
  whether the system message is among them. A row whose answers have different
  prompts is malformed.

  With `in_images` both answers are about the images of the prompt: the example
  has them once, and `g4.nn.LoRA` encodes them once.

  Attributes:
    layout: See `ChatTask`.
    in_prompt: Key of the prompt.
    in_chosen: Key of the preferred answer.
    in_rejected: Key of the other.
    in_system: See `ChatTask`.
    in_tools: See `ChatTask`.
    in_images: See `ChatTask`, also for the next three.
    max_images: See `ChatTask`.
    max_soft_tokens: See `ChatTask`.
    patch_size: See `ChatTask`.
    out_input: Key to write the model's input to.
    out_target: Key to write the labels to.
    out_target_mask: Key to write the mask of the answers to.
    out_images: See `ChatTask`.
    drop_inputs: Whether to remove the input keys.
    tokenizer: A Gemma 4 tokenizer.
    max_length: Length of each of the two, in tokens.
    truncate: Whether to cut longer ones at the end. If False they are an error.
    thinking: See `ChatTask`.
    template: See `ChatTask`.
    enable_thinking: See `ChatTask`; rows may say it, too.
    template_kwargs: See `ChatTask`.
    empty_answers: See `ChatTask`, also for the next three.
    inline_markup: See `ChatTask`.
    null_arguments: See `ChatTask`.
    allowed_tags: See `ChatTask`.
    max_malformed: See `ChatTask`. A pair whose answers have equal tokens counts
      as malformed: there is nothing to prefer.
  """

  in_chosen: kd.kontext.Key = 'chosen'
  in_rejected: kd.kontext.Key = 'rejected'

  def fields(self, element: Any) -> dict[str, Any]:
    """Returns the output fields of an example.

    Raises:
      ValueError: It is not a pair that can be trained on.
      KeyError: It lacks a field.
    """
    chosen, rejected = (self.answered(element, x) for x in self._in_answers)
    rejected = _same_prompt.shared(
        chosen,
        rejected,
        in_chosen=self.in_chosen,
        in_rejected=self.in_rejected,
    )
    arrays, others = self.arrays(element, [chosen, rejected])
    if np.array_equal(*arrays[self.out_target]):
      raise ValueError(
          f'PreferenceTask: {self.in_chosen!r} and {self.in_rejected!r} are the'
          f' same tokens (of the first {self.max_length}): there is nothing to'
          ' prefer.'
      )
    return arrays | others

  def field_specs(self, max_length: int | None = None) -> dict[str, Any]:
    """Returns the shapes of the output fields; see `ChatTask.field_specs`."""
    return self.array_specs(2, max_length or self.max_length)

  @property
  def _in_answers(self) -> tuple[str, ...]:
    return self.in_chosen, self.in_rejected
