"""A chat template in a file, rendered as servers render it.

The environment is that of transformers 5.24: Jinja's sandbox, its loop controls,
`{% generation %}`, `tojson`, `raise_exception` and `strftime_now`.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import datetime
import functools
import json
import os
from typing import Any

from etils import epath
import jinja2
from jinja2 import ext
from jinja2 import nodes
from jinja2 import sandbox

from gemma4_lora import host
from gemma4_lora.host.files import _regular

_FILE = 'chat_template.jinja'
# Older folders have it as a field of these.
_OTHER_FILES = ('tokenizer_config.json', 'chat_template.json')
_FIELD = 'chat_template'
_MAX_BYTES = 1 << 24
_MAX_ATTRIBUTES = 4096
# Tokens by the names that tokenizers give to templates. Gemma 4's.
_TOKENS = {
    'bos_token': '<bos>',
    'eos_token': '<eos>',
    'pad_token': '<pad>',
    'unk_token': '<unk>',
    'image_token': '<|image|>',
    'audio_token': '<|audio|>',
    'video_token': '<|video|>',
}


class Template:
  """A chat template.

  Attributes:
    path: Where it stands.
  """

  def __init__(self, path: str):
    self.path = path
    source = _source(_given(path))
    try:
      self._template = _environment().from_string(source)
    except jinja2.TemplateSyntaxError as e:
      raise ValueError(
          f'template={path!r} is no Jinja template: line {e.lineno}: {e.message}'
      ) from None

  def render(
      self,
      messages: Sequence[Mapping[str, Any]],
      tools: Sequence[Mapping[str, Any]],
      kwargs: Mapping[str, Any],
      *,
      add_generation_prompt: bool = False,
  ) -> str:
    """Returns the text of messages, without `<bos>`.

    Args:
      messages: The messages, in OpenAI's form.
      tools: The tools, in OpenAI's form.
      kwargs: Further arguments of the template.
      add_generation_prompt: Whether the model is next.

    Raises:
      ValueError: The template raises.
    """
    try:
      text = self._template.render(
          _TOKENS
          | dict(kwargs)
          | {
              'messages': list(messages),
              'tools': list(tools) or None,
              'documents': None,
              'add_generation_prompt': add_generation_prompt,
          }
      )
    except Exception as e:
      # It may raise whatever an expression of it does.
      raise ValueError(
          f'template={self.path!r} raises {str(e)!r} ({type(e).__name__}) for this'
          ' conversation.'
      ) from e
    return text.removeprefix(_TOKENS['bos_token'])


# Each process of a data loader reads it once.
@functools.lru_cache(maxsize=16)
def template(path: str) -> Template:
  """Returns the template at a path.

  Args:
    path: A file, or a folder that has `chat_template.jinja`, or the template in
      `tokenizer_config.json`; here or in a bucket.

  Raises:
    FileNotFoundError: There is none.
    ValueError: It is no template.
  """
  return Template(path)


def _given(path: str) -> epath.Path:
  """Returns the file that a user means."""
  given = host.path(path, who='template').expanduser()
  if not given.is_dir():
    if not given.exists():
      raise FileNotFoundError(
          f'template={path!r}: there is no such file or folder. Give the'
          f' {_FILE} of the model that is served, or its folder.'
      )
    return given
  for name in (_FILE, *_OTHER_FILES):
    file = given / name
    if file.exists() and (name == _FILE or _of_json(file) is not None):
      return file
  raise FileNotFoundError(
      f'template={path!r}: the folder has no {_FILE}, and no {_FIELD!r} in'
      f' {" or ".join(_OTHER_FILES)}.'
  )


def _source(file: epath.Path) -> str:
  """Returns the text of the template in a file."""
  if file.suffix != '.json':
    return _read(file)
  source = _of_json(file)
  if source is None:
    raise ValueError(f'template={os.fspath(file)!r} has no {_FIELD!r}.')
  return source


def _of_json(file: epath.Path) -> str | None:
  """Returns the template of a tokenizer's settings; None if it has none."""
  try:
    value = json.loads(_read(file))
  except (ValueError, RecursionError) as e:
    raise ValueError(f'template={os.fspath(file)!r} is no JSON: {e}') from None
  value = value.get(_FIELD) if isinstance(value, dict) else None
  if isinstance(value, list):  # Several by name.
    named = [x for x in value if isinstance(x, dict)]
    value = next(
        (x.get('template') for x in named if x.get('name') == 'default'), None
    )
  return value if isinstance(value, str) else None


def _read(file: epath.Path) -> str:
  _regular.check(file, who='template')
  if file.stat().length > _MAX_BYTES:
    raise ValueError(
        f'template={os.fspath(file)!r} has {file.stat().length} bytes: that is'
        ' no chat template.'
    )
  data = file.read_bytes()
  if (what := _regular.what_else(data[: _regular.HEAD_BYTES])) is not None:
    raise ValueError(f'template={os.fspath(file)!r}: {what}')
  try:
    return data.decode('utf-8')
  except UnicodeDecodeError as e:
    raise ValueError(f'template={os.fspath(file)!r} is no text: {e}') from None


class _Generation(ext.Extension):
  """`{% generation %}`: what the model says, for masks. We find it ourselves."""

  tags = {'generation'}

  def parse(self, parser: Any) -> nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    return nodes.Scope(body, lineno=line)


class _Sandbox(sandbox.ImmutableSandboxedEnvironment):
  """Jinja's sandbox, which looks at each attribute of a type once.

  What it asks of an object is its type; that was a third of a rendering.
  """

  def __init__(self, **kwargs: Any):
    super().__init__(**kwargs)
    self._is_safe: dict[tuple[type, str], bool] = {}

  def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
    key = type(obj), attr
    if key not in self._is_safe:
      if len(self._is_safe) > _MAX_ATTRIBUTES:
        self._is_safe.clear()  # Keys of rows may be among them.
      self._is_safe[key] = super().is_safe_attribute(obj, attr, value)
    return self._is_safe[key]


@functools.cache
def _environment() -> jinja2.Environment:
  environment: Any = _Sandbox(
      trim_blocks=True,
      lstrip_blocks=True,
      extensions=[_Generation, ext.loopcontrols],
  )
  environment.filters['tojson'] = _to_json
  environment.globals['raise_exception'] = _raise
  environment.globals['strftime_now'] = _now
  return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
  """As `json.dumps`: Jinja's own escapes what HTML would not show."""
  return json.dumps(
      value,
      ensure_ascii=ensure_ascii,
      indent=indent,
      separators=separators,
      sort_keys=sort_keys,
  )


def _raise(message: str) -> None:
  raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
  return datetime.datetime.now().strftime(pattern)
