"""Renders by a template of a file, and finds what is trained by prefixes.

What the model says begins where the template's prompt ends, and ends where the
text of the messages up to it does. Both must be prefixes of the text of all.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import re
from typing import Any

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.conversations import _spans
from gemma4_lora.data.templates import _chat_messages
from gemma4_lora.data.templates import _jinja
from gemma4_lora.data.templates import _style
from gemma4_lora.data.templates import _thoughts
from gemma4_lora.data.templates import _turns

MODEL = _conversation.MODEL
Span = _spans.Span

_END = '<turn|>'
_PROMPT = 'its prompt'
# What a prompt may have, and the text of all messages not.
_INSERTED = (_thoughts.EMPTY,)
# A thought, or the rest of one that the prompt begins.
_THOUGHT = re.compile(
    rf'({re.escape(_thoughts.OPEN)}.*?|\A.*?){re.escape(_thoughts.CLOSE)}',
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class _Said:
  """What the model says at one place of the text.

  Attributes:
    begin: Where, in the text of all messages.
    end: Where it ends.
    inserted: What the prompt has before it, and the text of all has not: the
      empty thought of the larger models.
    weight: Its loss weight.
    is_answer: Whether the model's last turn begins with it.
  """

  begin: int
  end: int
  inserted: str
  weight: float
  is_answer: bool


class Prefixes:
  """Renders one conversation."""

  def __init__(
      self,
      conversation: _conversation.Conversation,
      style: _style.Style,
      template: _jinja.Template,
  ):
    self._style = style
    self._template = template
    self._tools = [_chat_messages.tool(x) for x in conversation.tools]
    self._messages = messages = conversation.messages
    self._turns = _turns.Turns(messages, style)
    users = [i for i, m in enumerate(messages) if m.role == 'user']
    last_user = users[-1] if users else -1
    self._rendered: dict[
        tuple[int, ...], tuple[str, Sequence[Mapping[str, Any]]]
    ] = {}
    self._flat: list[dict[str, Any]] = []
    self._begins: list[int] = []  # Where each message is in `_flat`.
    for i, message in enumerate(messages):
      parts = _thoughts.kept(message, style, is_last=i > last_user)
      self._begins.append(len(self._flat))
      self._flat += _chat_messages.messages_of(message, parts)

  def prompt(self) -> str:
    """Returns what a sampler is given for the model's last turn.

    Raises:
      ValueError: The template raises.
    """
    messages = self._flat[: self._begins[self._turns.last_turn + 1]]
    return self._render(messages, prompt=True)

  def render(self) -> _spans.Rendered:
    """Returns the conversation in turns.

    Raises:
      ValueError: The template raises; or it writes a message otherwise once
        others follow, so that its prompts are not what is trained.
    """
    text = self._render(self._flat)
    spans: list[Span] = []
    num_prompt, at = None, 0
    for said in self._all_said(text):
      before = [Span(text[at : said.begin]), Span(said.inserted)]
      spans += [span for span in before if span.text]
      if said.is_answer:
        num_prompt = len(spans)
      spans += self._weighted(text[said.begin : said.end], said.weight, spans)
      at = said.end
    rest = text[at:]
    if text.endswith(f'{_END}\n'):
      rest = rest.removesuffix('\n')
    spans += [Span(rest)] if rest else []
    return _spans.rendered(
        spans, num_prompt=len(spans) if num_prompt is None else num_prompt
    )

  def _all_said(self, text: str) -> Iterator[_Said]:
    """Yields what the model says, as far as it is trained, or the answer."""
    turns = self._turns
    for i, message in enumerate(self._messages):
      is_answer = message.role == MODEL and i == turns.last_turn + 1
      weight = turns.weight(i)
      if not weight and not is_answer:
        continue
      begin, inserted = self._begin(text, i)
      said = self._until(i)
      end = self._end(text, said, i)
      behind = None if end is not None else self._behind(text, i)
      if behind is not None:
        calls, answers = behind
        yield _Said(begin, calls, inserted, weight, is_answer)
        begin, inserted, is_answer = answers, '', False
        said = self._render(self._flat[: self._next(i)])
        end = self._end(text, said, i)
      if end is None:
        raise ValueError(self._message(i, 'its text', said, text))
      yield _Said(begin, end, inserted, weight, is_answer)

  def _behind(self, text: str, i: int) -> tuple[int, int] | None:
    """Returns where the calls of a message end, and its answers.

    None unless what the message says stands behind the answers.
    """
    begin = self._begins[i]
    silent = self._flat[begin] | {'content': ''}
    answers = self._flat[begin + 1 : self._next(i)]
    if not self._messages[i].responses:
      return None
    before = self._flat[:begin]
    calls = self._render([*before, _without_answers(silent)])
    written = self._render([*before, silent, *answers])
    if text.startswith(calls) and text.startswith(written):
      return len(calls), len(written)
    return None

  def _next(self, i: int) -> int:
    """Returns where the next message begins in `_flat`."""
    begins = self._begins
    return begins[i + 1] if i + 1 < len(begins) else len(self._flat)

  def _begin(self, text: str, i: int) -> tuple[int, str]:
    """Returns where a message begins, and what the prompt has beside."""
    before = self._flat[: self._begins[i]]
    prompt = self._render(before, prompt=True)
    if text.startswith(prompt):
      return len(prompt), ''
    written = self._render(before)
    previous = self._messages[i - 1] if i else None
    if previous is not None and previous.role == MODEL:
      begin = self._end(text, written, i - 1, whole=True)
      is_asked = bool(previous.responses) and begin == len(written)
      if begin is not None and not is_asked:
        return begin, ''  # The model goes on.
      if begin is not None and prompt == written + _thoughts.OPEN:
        _thoughts.warn_of_none(self._messages[i].field)
        return begin, ''
    elif text.startswith(written) and prompt.startswith(written):
      number = _num_common(text, prompt)
      if prompt[number:] in _INSERTED:
        return number, prompt[number:]
    raise ValueError(self._message(i, _PROMPT, prompt, text))

  def _end(
      self, text: str, said: str, i: int, *, whole: bool = False
  ) -> int | None:
    """Returns where the text up to a message ends; None if it is no prefix.

    Args:
      text: The text of all messages.
      said: The text of the messages up to this one.
      i: The message.
      whole: Whether a newline behind the end of the turn counts. Samplers stop
        at the end, so the newline is not said.
    """
    cut = said.rstrip()
    ends = cut.endswith(_END)
    if text.startswith(said):
      return len(cut if ends and not whole else said)
    following = self._messages[i + 1 : i + 2]
    if ends and following and following[0].role == MODEL:
      # The template writes both as one turn.
      cut = cut.removesuffix(_END)
      return len(cut) if text.startswith(cut) else None
    return None

  def _until(self, i: int) -> str:
    """Returns the text up to a message, without the answers of its tools."""
    begin = self._begins[i]
    last = _without_answers(self._flat[begin])
    return self._render([*self._flat[:begin], last])

  def _weighted(
      self, text: str, weight: float, before: list[Span]
  ) -> list[Span]:
    """Returns spans of what the model says, thoughts apart if masked."""
    if self._style.thinking != 'mask' or not weight:
      return [Span(text, weight)] if text else []
    begun = bool(before) and before[-1].text.endswith(_thoughts.OPEN)
    spans, at = [], 0
    for match in _THOUGHT.finditer(text):
      if match[0].startswith(_thoughts.OPEN) or begun:
        spans += [Span(text[at : match.start()], weight), Span(match[0])]
        at = match.end()
    spans.append(Span(text[at:], weight))
    return [span for span in spans if span.text]

  def _render(
      self, messages: Sequence[Mapping[str, Any]], *, prompt: bool = False
  ) -> str:
    key = (*map(id, messages), prompt)
    if key not in self._rendered:
      kwargs = dict(self._style.template_kwargs)
      if self._style.enable_thinking:
        kwargs['enable_thinking'] = True
      text = self._template.render(
          messages, self._tools, kwargs, add_generation_prompt=prompt
      )
      # With the messages, whose ids are no others' as long as they are kept.
      self._rendered[key] = text, messages
    return self._rendered[key][0]

  def _message(self, i: int, what: str, part: str, text: str) -> str:
    number = _num_common(text, part)
    field = self._messages[i].field or f'message {i}'
    if what == _PROMPT and part[number:].startswith(_thoughts.OPEN):
      advice = (
          'The server begins a thought: give the message one, or leave thinking'
          ' off.'
      )
    else:
      advice = (
          'If the template leaves thoughts out of history, write'
          " thinking='strip' or 'strip_all', or loss_on='last'."
      )
    return (
        f'Field {field!r} does not fit template={self._template.path!r}: {what} is'
        ' no prefix of the text of the whole conversation, so that its server'
        f' never sees what would be trained. It has {part[number : number + 60]!r},'
        f' where the whole has {text[number : number + 60]!r}. {advice}'
    )


def _without_answers(message: dict[str, Any]) -> dict[str, Any]:
  if 'tool_responses' not in message:
    return message
  return {k: v for k, v in message.items() if k != 'tool_responses'}


def _num_common(a: str, b: str) -> int:
  """Returns how many characters two texts begin with alike, whole tags."""
  for i, (x, y) in enumerate(zip(a, b, strict=False)):
    if x != y:
      tag = a.rfind('<', 0, i)
      return tag if 0 <= tag and '>' not in a[tag:i] else i
  return min(len(a), len(b))
