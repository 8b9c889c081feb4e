"""The text of a conversation, in spans with and without loss."""

from collections.abc import Sequence
import dataclasses


@dataclasses.dataclass(frozen=True)
class Span:
  """Text, and the weight of its tokens in the loss."""

  text: str
  weight: float = 0.0


@dataclasses.dataclass(frozen=True)
class Rendered:
  """A conversation as the model sees it, without `<bos>`.

  Attributes:
    spans: Spans in order; each is tokenized by itself. Neighbours have
      different weights, except at the end of the prompt.
    num_prompt: How many characters are the sampler's prompt for the model's
      last turn.
  """

  spans: tuple[Span, ...]
  num_prompt: int

  @property
  def text(self) -> str:
    """All of it."""
    return ''.join(span.text for span in self.spans)

  @property
  def prompt(self) -> str:
    """The sampler's prompt for the model's last turn."""
    return self.text[: self.num_prompt]

  @property
  def response(self) -> str:
    """The model's expected answer to the prompt."""
    return self.text[self.num_prompt :]

  @property
  def trained(self) -> str:
    """The spans that have a loss."""
    return ''.join(span.text for span in self.spans if span.weight)


def rendered(spans: Sequence[Span], *, num_prompt: int) -> Rendered:
  """Returns a conversation; the first spans are the prompt."""
  prompt = spans[:num_prompt]
  return Rendered(
      # Tokens must not reach from the prompt of a sampler into the response.
      spans=(*_merged(prompt), *_merged(spans[num_prompt:])),
      num_prompt=sum(len(span.text) for span in prompt),
  )


def _merged(spans: Sequence[Span]) -> list[Span]:
  """Joins neighbours of equal weight, to tokenize them as one text."""
  merged: list[Span] = []
  for span in spans:
    if merged and merged[-1].weight == span.weight:
      span = Span(merged.pop().text + span.text, span.weight)
    merged.append(span)
  return merged
