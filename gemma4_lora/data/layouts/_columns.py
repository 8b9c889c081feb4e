"""Which fields of a row hold a conversation."""

import dataclasses

from kauldron import kd


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
