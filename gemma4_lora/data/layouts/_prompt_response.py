"""Rows of a prompt and its response, two texts."""

from typing import Any

from kauldron import kd

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.layouts import _columns
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.layouts import _layout

Columns = _columns.Columns
Conversation = _conversation.Conversation


class PromptResponse(_layout.Layout):
  """two texts, at `in_prompt` and `in_response`."""

  name = 'prompt_response'

  def conversation_keys(self, columns: Columns) -> list[kd.kontext.Key]:
    return [columns.in_prompt, columns.in_response]

  def parse(self, row: Any, columns: Columns) -> Conversation:
    return from_texts(
        _fields.get_text(row, columns.in_prompt),
        _fields.get_text(row, columns.in_response),
        in_prompt=columns.in_prompt,
        in_response=columns.in_response,
    )

  def read_answer(
      self,
      row: Any,
      *,
      in_prompt: kd.kontext.Key | None,
      in_answer: kd.kontext.Key,
  ) -> tuple[str | None, Any]:
    assert in_prompt is not None  # See `PreferenceTask`.
    prompt = _fields.get_text(row, in_prompt)
    return prompt, _fields.get_text(row, in_answer)

  def write(
      self, prompt: str | None, answer: str, *, num_images: int | None = None
  ) -> str:
    del prompt, num_images  # In a field of its own.
    return answer


def from_texts(
    prompt: str, response: str, *, in_prompt: str, in_response: str
) -> Conversation:
  """Returns the conversation of a prompt and its response.

  Args:
    prompt: What the user says.
    response: What the model says.
    in_prompt: Field of the prompt, for errors.
    in_response: Field of the response, for errors.

  Raises:
    ValueError: One of them has a turn tag or half a thought.
  """
  user = _conversation.parse_text(prompt, role='user', field=in_prompt)
  model = _conversation.parse_text(response, role='model', field=in_response)
  return Conversation(
      messages=(
          _conversation.Message(
              role='user', parts=tuple(user), field=in_prompt
          ),
          _conversation.Message(
              role='model', parts=tuple(model), field=in_response
          ),
      )
  )
