"""`python -m gemma4_lora chat`: talking to a run."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import importlib
import sys
from typing import Any

from gemma import gm
from kauldron import kd
from kauldron import konfig

from gemma4_lora import ckpts
from gemma4_lora import nn
from gemma4_lora.data import _row_task
from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.templates import _render
from gemma4_lora.hf import _load_peft
from gemma4_lora.host import _escapes
from gemma4_lora.runs import _export
from gemma4_lora.runs import _run

_WHO = 'gemma4_lora chat'
_END = '<turn|>'
_HELP = (
    '/base: the base answers; /lora: with LoRA again; /new: forget what was'
    ' said; /quit'
)
# Prompts are padded to one of these: each is compiled once.
_PADS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


@dataclasses.dataclass(kw_only=True, eq=False)
class Chat:
  """A conversation with a model, LoRA on or off.

  Each turn is sampled from the whole conversation, in the tokens of training,
  without a cache of earlier turns. So the data's policy decides about earlier
  thoughts, and the base continues the same conversation after answers of LoRA.

  Attributes:
    model: A `g4.nn.LoRA`; or a model that it is merged into.
    params: All parameters.
    tokenizer: The run's tokenizer.
    style: How the run renders conversations.
    sharding: Sharding of the tokens.
    sampling: How to choose tokens.
    max_new_tokens: The most tokens of an answer.
    cache_length: The most tokens of the conversation.
    with_lora: Whether LoRA is on.
    messages: The conversation so far.
  """

  model: Any
  params: Any
  tokenizer: gm.text.Tokenizer
  style: _render.Style
  sharding: Any = None
  sampling: gm.text.SamplingMethod
  max_new_tokens: int
  cache_length: int
  with_lora: bool = True
  messages: tuple[_conversation.Message, ...] = ()

  def say(self, text: str) -> str:
    """Returns the answer of the model.

    Raises:
      ValueError: The text is invalid, or the conversation is too long.
    """
    parts = _conversation.parse_text(text, role='user', field='prompt')
    if any(isinstance(part, _conversation.Image) for part in parts):
      raise ValueError(f'{_WHO} takes no images. Leave <|image|> out.')
    messages = (*self.messages, _message('user', parts))
    prompt = self._prompt(messages)
    length = len(self.tokenizer.encode(prompt, add_bos=True))
    if length + self.max_new_tokens > self.cache_length:
      raise ValueError(
          f'The conversation has {length} tokens, and with'
          f' --max_new_tokens={self.max_new_tokens} it does not fit into'
          f' --cache_length={self.cache_length}. Begin anew with /new, or change'
          ' one of the two.'
      )
    sampler = self._sampler(self.with_lora)
    sampled: Any = sampler.sample(prompt, sharding=self.sharding)
    answer = sampled.split(_END, 1)[0]
    self.messages = (*messages, _message('model', _parts(answer)))
    return answer

  def use(self, *, lora: bool) -> None:
    """Turns LoRA on or off.

    Raises:
      ValueError: It cannot be off.
    """
    _ = self._sampler(lora)
    self.with_lora = lora

  def _prompt(self, messages: tuple[_conversation.Message, ...]) -> str:
    """Returns the text up to the model's turn."""
    conversation = _conversation.Conversation(
        messages=(*messages, _message('model', []))
    )
    return _render.prompt(conversation, self.style)

  def _sampler(self, lora: bool) -> gm.text.Gemma4Sampler:
    model = self.model
    if not lora:
      if not isinstance(model, nn.LoRA):
        raise ValueError(
            'LoRA is merged into this model: it has no base to ask. Leave /base'
            ' and --nolora out.'
        )
      model = model.clone(enabled=False)
    return gm.text.Gemma4Sampler(
        model=model,
        params=self.params,
        tokenizer=self.tokenizer,
        sampling=self.sampling,
        cache_length=self.cache_length,
        max_out_length=self.max_new_tokens,
        pad_length=(
            *(n for n in _PADS if n < self.cache_length),
            self.cache_length,
        ),
    )


def run(
    cfg: Any,
    *,
    model: Any,
    init_transform: Any,
    workdir: str | None,
    peft: str | None = None,
    merged: str | None = None,
    prompt: str | None = None,
    step: int = -1,
    with_lora: bool = True,
    max_new_tokens: int,
    cache_length: int,
    temperature: float = 0.0,
) -> int:
  """Talks to a run, line by line, until the input ends.

  Args:
    cfg: A `konfig.ConfigDict`: its data determine the rendering; its sharding
      is used.
    model: The config's model.
    init_transform: The config's `init_transform=`: where the base comes from.
    workdir: The run's workdir; None with `peft` or `merged`.
    peft: A PEFT folder, whose LoRA takes the place of the run's.
    merged: A folder with LoRA merged into its base, as `fuse` and `export`
      write it: a checkpoint of gemma, or safetensors.
    prompt: To answer, and nothing else; None to take lines.
    step: Which checkpoint of the run; -1 for the last.
    with_lora: Whether LoRA is on at the beginning.
    max_new_tokens: The most tokens of an answer.
    cache_length: The most tokens of the conversation.
    temperature: 0 for the most likely token.

  Returns:
    The exit status: 1 if a line had no answer.

  Raises:
    FileNotFoundError: There is no checkpoint.
    ValueError: Run, base and config do not fit.
  """
  sampling = gm.text.Greedy()
  if temperature:
    sampling = gm.text.RandomSampling(temperature=temperature)
  lora = None
  if peft is not None:  # The folder says what it adapts.
    loaded = _load_peft.load_peft(peft, model=model.model)
    model = loaded.model.clone(quantize=model.quantize)
    lora, workdir = loaded.params, None
  if merged is not None:
    model = model.model if isinstance(model, nn.LoRA) else model
    init_transform, workdir = ckpts.PartialLoad(path=merged), None
  opened = _run.open_run(
      model, init_transform, workdir=workdir, step=step, who=_WHO
  )
  if lora is not None:
    where = f'{opened.where} + {peft}'
    opened = dataclasses.replace(opened, lora=lora, where=where)
  strategy = cfg.get('sharding')
  sharding = konfig.resolve(strategy).params if strategy else None
  tokenizer, style = _of_data(cfg)
  chat = Chat(
      # Routers and images of gemma 4.0.1 need it: see `nn`.
      model=nn.RouterFix(model=model) if merged else model,
      params=_export.params_of(opened, sharding=sharding, who=_WHO),
      tokenizer=tokenizer or gm.text.Gemma4Tokenizer(),
      style=style,
      sharding=None if sharding is None else kd.sharding.REPLICATED,
      sampling=sampling,
      max_new_tokens=max_new_tokens,
      cache_length=cache_length,
  )
  chat.use(lora=with_lora)
  if prompt is not None:
    print(chat.say(prompt), flush=True)
    return 0
  what = 'LoRA merged' if merged else f'LoRA {"on" if with_lora else "off"}'
  _note(f'{opened.where}, {what}. {_HELP}.')
  return _talk(chat)


def _talk(chat: Chat) -> int:
  """Answers each line; answers go to stdout, and all else to stderr."""
  status = 0
  for line in _lines():
    text = line.strip()
    if text in ('/quit', '/exit'):
      break
    try:
      if text.startswith('/'):
        _obey(chat, text)
      elif text:
        print(chat.say(text), flush=True)
    except ValueError as e:
      _note(str(e))
      status = 1
  return status


def _obey(chat: Chat, command: str) -> None:
  """Runs a line that begins with `/`."""
  if command == '/new':
    chat.messages = ()
  elif command in ('/base', '/lora'):
    chat.use(lora=command == '/lora')
    _note(f'LoRA {"on" if chat.with_lora else "off"}.')
  else:
    raise ValueError(f'{command!r} is no command. {_HELP}.')


def _lines() -> Iterator[str]:
  if not sys.stdin.isatty():
    yield from sys.stdin
    return
  with contextlib.suppress(ImportError):
    importlib.import_module('readline')  # For `input`.
  while True:
    try:
      yield input('> ')
    except (EOFError, KeyboardInterrupt):
      print()
      return


def _note(text: str) -> None:
  line = f'{_WHO}: {_escapes.escaped(text)}'
  print(line, file=sys.stderr, flush=True)


def _of_data(cfg: Any) -> tuple[gm.text.Tokenizer | None, _render.Style]:
  """Returns the tokenizer of the data and how they render conversations.

  The data themselves need not be at hand.
  """
  parts = [
      konfig.resolve(node)
      for node in _nodes([cfg.get('train_ds'), cfg.get('evals')])
      if node.get('tokenizer') is not None
  ]
  if not parts:
    return None, _render.Style()
  tasks = [part for part in parts if isinstance(part, _row_task.RowTask)]
  part: Any = (tasks or parts)[0]
  fields = ('thinking', 'loss_on', 'template', 'enable_thinking')
  style = _render.Style(
      **{k: getattr(part, k) for k in fields if hasattr(part, k)}
  )
  return part.tokenizer, style


def _nodes(value: Any) -> Iterator[Any]:
  """Yields all dicts of a config."""
  if isinstance(value, (konfig.ConfigDict, Mapping)):
    yield value
    for child in value.values():
      yield from _nodes(child)
  elif isinstance(value, (list, tuple)):
    for child in value:
      yield from _nodes(child)


def _message(role: str, parts: Any) -> _conversation.Message:
  return _conversation.Message(role=role, parts=tuple(parts))


def _parts(answer: str) -> list[_conversation.Part]:
  try:
    return _conversation.parse_text(answer, role='model', field='answer')
  except ValueError:  # An incomplete thought, cut by `max_new_tokens`.
    return [_conversation.Text(answer)]
