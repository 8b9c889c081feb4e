"""Reads the config of a command line; errors are one line.

Kauldron's flag imports a file, calls its `get_config`, and sets what the command
line changes in it. Each of these has errors of its own, of any type: here they
are one, which says where in the file, or which flag.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses
import difflib
import importlib
import inspect
import os
import pathlib
import re
import traceback
from typing import Any

from kauldron import konfig

from gemma4_lora.jobs.command_line import _allowed
from gemma4_lora.jobs.command_line import _shipped

_PACKAGE = pathlib.Path(__file__).parents[2]
_CLASS = '__qualname__'  # Where `konfig` keeps it.
_ARGS = '__args__'  # Arguments of `get_config`.
# `konfig` of kauldron 1.4.4.
_OVERRIDE = re.compile(r'Error trying to mutate path (\S+): (.*)')
_CAST = re.compile(
    r"Could not override field '\w+' \(reference\)\. ?(.*?) ?is of original type"
    r" <class '\w+'> and cannot be casted to type <class '(\w+)'>"
)
_PLACE = re.compile(r"^In (?:'(.*)'|\[(\d+)\]):$", re.MULTILINE)
_KONFIG = f'kauldron{os.sep}konfig{os.sep}'
OF_USERS = (ValueError, OSError, ImportError)
_DOES_NOT_FIT = re.compile(
    r'\w\(\) (got an unexpected keyword argument|missing \d+ required'
    r'|takes \d+ positional|got multiple values)'
)


class ConfigError(ValueError):
  """A config cannot be read, or a command line does not fit it."""


def read(flag: Any, *, overrides: Iterable[str] = ()) -> Any:
  """Returns the config, as Kauldron will see it.

  Args:
    flag: The flag of the config, parsed.
    overrides: Names of what the command line changes, as in
      `_arguments.overrides`.

  Raises:
    ConfigError: It cannot be built, or lacks what the command line changes.
  """
  try:
    cfg = flag.value
  except Exception as e:  # It is the user's code.
    raise ConfigError(explain(e, flag.config_filename, flag.name)) from e
  if not isinstance(cfg, konfig.ConfigDict):
    raise ConfigError(
        f'--{flag.name}={flag.config_filename}: get_config() returns no config,'
        f' but {type(cfg).__name__}.'
    )
  for name in overrides:
    _check_is_field(cfg, name, flag=flag.name)
  return cfg


def explain(error: BaseException, given: str, name: str = 'cfg') -> str:
  """Returns the line for what reading a config has raised.

  Args:
    error: What was raised.
    given: What the flag was given: a path, and perhaps `:ARGUMENT`.
    name: Name of the flag.
  """
  path = given.partition(':')[0]
  flag = f'--{name}={_allowed.shown(given)}'  # On one line.
  if line := _line_in(error, path):
    root = _root(error)
    return f'{path}:{line}: {type(root).__name__}: {_one_line(root)}'
  if '://' in given:
    return f'{flag}: a config is a Python file on this machine.'
  if isinstance(error, OSError):
    if not path:
      return f'--{name} is empty: it takes the file of a config.'
    if os.path.isfile(path) and error.errno is None:
      # ml_collections takes any file that is missing for the config itself.
      said = _one_line(error).rpartition(path)[2].strip()
      return f'{path}: FileNotFoundError: {said}'
    if os.path.exists(path):
      return f'{flag} cannot be read: {error.strerror or _one_line(error)}.'
    return _shipped.missing(given, flag=f'--{name}') or _one_line(error)
  if match := _OVERRIDE.search(_one_line(error)):
    return f'--{name}.{match[1]}: {_wrong_type(match[2])}'
  if 'get_config' in str(error):
    return f'{flag}: {_one_line(_root(error))}'
  return f'{flag}: {type(error).__name__}: {_one_line(_root(error))}'


def explain_resolved(error: Exception) -> str | None:
  """Returns the line for what `konfig.resolve` has raised.

  Returns:
    None if it is neither of a name that is not there, of arguments that do not
    fit, nor of our own checks: then a traceback says more.
  """
  frames = traceback.extract_tb(error.__traceback__)
  inside = [i for i, x in enumerate(frames) if _KONFIG in x.filename]
  if not inside:
    return None
  root = _root(error)
  last = frames[inside[-1]].name
  calls = len(frames) - 1 - inside[-1]
  is_name = last == 'import_qualname' and isinstance(
      root, (AttributeError, ImportError)
  )
  # Flax has a frame of its own between.
  is_call = calls <= 1 and _DOES_NOT_FIT.search(str(root))
  checked = isinstance(root, OF_USERS) and is_ours(root)
  # As for PEFT's words as arguments.
  checked = checked or (isinstance(root, TypeError) and is_told(root))
  if not (is_name or is_call or checked):
    return None
  prefix = str(error).removesuffix(str(root)).partition('\nFor: ')[0]
  place = '.'.join(x[1] or x[2] for x in _PLACE.finditer(prefix))
  return f'cfg.{place}: {_one_line(root)}' if place else _one_line(root)


def fields(qualname: str) -> dict[str, Any] | None:
  """Returns the arguments of a class, and their defaults.

  Args:
    qualname: As `konfig` writes it, as in `kauldron.kd:train.Trainer`.

  Returns:
    By name; `inspect.Parameter.empty` or `dataclasses.MISSING` if there is no
    default. None if it may take any argument.
  """
  module, _, attributes = qualname.partition(':')
  try:
    constructor: Any = importlib.import_module(module)
    for attribute in attributes.split('.'):
      constructor = getattr(constructor, attribute)
    parameters = inspect.signature(constructor).parameters.values()
  except Exception:  # Resolving the config says what is wrong.
    return None
  if not any(p.kind == p.VAR_KEYWORD for p in parameters):
    return {p.name: p.default for p in parameters}
  # `kd.train.Trainer` hides what it takes.
  made = getattr(constructor, '__dataclass_params__', None)
  if made is None or not made.init:
    return None
  return {x.name: x.default for x in dataclasses.fields(constructor) if x.init}


def node_of(cfg: Any, name: str) -> tuple[Any, str]:
  """Returns what an override sets a field of, and the name of the field.

  Args:
    cfg: The config.
    name: As in `model.rank` or `evals[0].run`.

  Returns:
    None and the name if it cannot be found.
  """
  *parents, last = re.split(r'[.\[\]]+', name.rstrip(']'))
  if _ARGS in (last, *parents):
    return None, last
  node = cfg
  for key in parents:
    try:
      node = node[int(key)] if isinstance(node, (list, tuple)) else node[key]
    except (KeyError, IndexError, ValueError, TypeError):
      return None, last  # `konfig` has found it, in a way of its own.
  return node, last


def _wrong_type(said: str) -> str:
  """Returns what a field takes, where `konfig` says what it cannot cast."""
  match = _CAST.fullmatch(said)
  if match is None:
    return said
  return f'takes {match[2]}. Got: {match[1]!r}'


def is_ours(error: BaseException | None) -> bool:
  """Whether this package raised an error, rather than what it calls."""
  return _raised(error) is not None


def is_told(error: BaseException | None) -> bool:
  """Whether this package raised it by `raise`, with a message for its user.

  An error that Python raises in the package's own lines needs its traceback.
  """
  frame = _raised(error)
  return frame is not None and (frame.line or '').startswith('raise ')


def _check_is_field(cfg: Any, name: str, *, flag: str) -> None:
  """Raises if what an override sets is no argument of what it is set on."""
  node, last = node_of(cfg, name)
  if not isinstance(node, konfig.ConfigDict) or _CLASS not in node:
    return
  if last.startswith('__'):
    return
  known = fields(node[_CLASS])
  if known is None or last in known or last.isdigit():
    return
  close = difflib.get_close_matches(last, known, n=1)
  start = name[: len(name) - len(last)]
  hint = f' Did you mean --{flag}.{start}{close[0]}?' if close else ''
  raise ConfigError(
      f'--{flag}.{name}: {node[_CLASS].replace(":", ".")} has no field'
      f' {last!r}.{hint}'
  )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  """Yields an error, and what it was raised from."""
  seen: set[int] = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    yield error
    error = error.__cause__ or error.__context__


def _raised(error: BaseException | None) -> traceback.FrameSummary | None:
  """Returns where in this package an error was raised, if it was."""
  while error is not None:
    frames = traceback.extract_tb(error.__traceback__)
    if frames and _PACKAGE in pathlib.Path(frames[-1].filename).parents:
      return frames[-1]
    # `konfig` adds where in the config it was, and raises anew.
    error = error.__cause__
  return None


def _line_in(error: BaseException, path: str) -> int | None:
  """Returns the last line of a file that an error came by."""
  for e in _chain(error):
    lines = [
        x.lineno
        for x in traceback.extract_tb(e.__traceback__)
        if x.filename == path
    ]
    if isinstance(e, SyntaxError) and e.filename == path:
      lines.append(e.lineno)
    if lines:
      return lines[-1]
  return None


def _root(error: BaseException) -> BaseException:
  """Returns the error without what `konfig` and absl have put before it."""
  while error.__context__ is not None:
    inner = str(error.__context__)
    if not inner or not str(error).endswith(inner):
      break
    error = error.__context__
  return error


def _one_line(error: BaseException) -> str:
  return ' '.join(str(error).split()) or type(error).__name__
