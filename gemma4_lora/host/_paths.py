"""Resolves a user's path: on this machine, or in a bucket.

Only `path` decides. All reads and writes at a user's path go through it, so
that a URL never becomes a folder called `gs:`.
"""

import functools
import importlib.util
import os
import posixpath
import re
import sys

from etils import epath
from etils.epath import backend as _backends
from etils.epath import gpath

# Buckets, and what reads them where TensorFlow, which reads gs:// alone, does
# not: the module, and the package to install.
_SCHEMES = {
    'gs': ('gcsfs', 'gcsfs'),
    's3': ('s3fs', 's3fs'),
    'az': ('adlfs', 'adlfs'),
    'hf': ('huggingface_hub', 'huggingface_hub'),
}
# Other spellings of buckets; `path` gives the right one.
_ALIASES = {
    'gcs': 'gs',
    's3a': 's3',
    's3n': 's3',
    'abfs': 'az',
    'abfss': 'az',
    'huggingface': 'hf',
}
_WEB = {
    'storage.googleapis.com/': 'gs',
    'storage.cloud.google.com/': 'gs',
    'huggingface.co/': 'hf',
}
# Two letters or more: `C:/` is a disk. For other schemes than buckets, a slash
# must follow: a file may be called `a:b`.
_URL = re.compile(
    r'[\s"\']*(?P<scheme>[A-Za-z][\w+.-]+):(?P<slashes>[/\\]+)(?P<rest>.*)'
)
_NO_SLASH = re.compile(
    rf'[\s"\']*(?P<scheme>{"|".join(_SCHEMES)}):(?P<slashes>)(?P<rest>.+)', re.I
)
# A URL after `os.path.abspath`.
_MADE_LOCAL = re.compile(
    rf'(?:.*/)?(?P<url>({"|".join([*_SCHEMES, *_ALIASES, "https?"])}):/[^/].*)',
    re.I,
)
# A URL without a bucket after `pathlib`.
_NO_BUCKET = re.compile(rf'({"|".join(_SCHEMES)}):', re.I)
# https://docs.cloud.google.com/storage/docs/buckets#naming
_BUCKET = re.compile('[a-z0-9][a-z0-9._-]*')
# Orbax looks for its files below a folder by patterns, in which this is a class
# of characters; and this, in a bucket alone, says that the next one is none.
_PATTERNS = '[\\'
_NOT_IN_URLS = '#?'


def path(given: epath.PathLike, *, who: str = '') -> epath.Path:
  """Returns the path of a user's argument.

  `~` is not expanded: call `expanduser()` if it means the home.

  Args:
    given: A local path, or `gs://bucket/…`; `s3://`, `az://` and `hf://` if the
      package that reads them is installed.
    who: What asks, for messages.

  Returns:
    A path that can be used as one of `pathlib`. A local one is as given.

  Raises:
    ValueError: It looks like a URL that cannot be read here. The message has
      the right spelling.
    ModuleNotFoundError: The package that reads it is not installed. The message
      names it.
    TypeError: It is not a path.
  """
  who = f'{who}: ' if who else ''
  if not isinstance(given, (str, os.PathLike)):
    raise TypeError(
        f'{who}a path is a string or os.PathLike. Got {type(given).__name__}:'
        f' {given!r}.'
    )
  text = os.fspath(given)
  if not isinstance(text, str):
    raise TypeError(f'{who}a path is a string, not bytes. Got: {text!r}.')
  if '\0' in text:
    raise ValueError(f'{who}{text!r} has a null character, which no path has.')
  match = _URL.match(text) or _NO_SLASH.match(text)
  if match is None:
    made = _MADE_LOCAL.match(text)
    if made and not os.path.exists(text):
      raise ValueError(
          f'{who}{text!r} is a URL after os.path.abspath or its like. Give'
          f' {_spelt(made["url"])!r}.'
      )
    if '://' in text or _NO_BUCKET.fullmatch(text):
      raise ValueError(
          f'{who}{text!r} is neither a local path nor a URL. A URL starts with'
          ' gs://bucket.'
      )
    return epath.Path(given)
  scheme = match['scheme']
  if scheme not in _SCHEMES:
    if text.startswith(f'{scheme}://') and (known := _registered(text)):
      return known
    raise ValueError(f'{who}{_unknown(text, match)}')
  if not text.startswith(f'{scheme}://'):
    raise ValueError(
        f'{who}{text!r} is no path. Give {_spelt(text)!r}, as a string or an'
        ' epath.Path: pathlib.Path makes one slash of two.'
    )
  return _in_bucket(text, scheme, who)


def check_orbax_can_write(where: epath.PathLike, *, who: str) -> None:
  """Raises if Orbax could not read again what it writes there.

  It puts a checkpoint together from the files that it finds by a pattern of their
  path, finds none, and only warns (orbax-checkpoint 0.12).

  Args:
    where: From `path`.
    who: What asks, for messages.

  Raises:
    ValueError: It would.
  """
  text = os.fspath(where)
  patterns = _PATTERNS[:1] if is_local(where) else _PATTERNS
  for found in patterns:
    if found in text:
      raise ValueError(
          f"{who}: {text} has a '{found}', which Orbax takes for a pattern: what"
          ' it saves there cannot be restored. Give a path without.'
      )
  check_orbax_can_read(where, who=who)


def check_orbax_can_read(where: epath.PathLike, *, who: str) -> None:
  """Raises if Orbax would use another path.

  It gives tensorstore a URL of a bucket, of which all from a `#` or `?` on is no
  path (orbax-checkpoint 0.12). And of a local path, tensorstore makes each
  backslash a slash (0.1.86). So arrays would be written elsewhere.

  Args:
    where: From `path`.
    who: What asks, for messages.

  Raises:
    ValueError: It would.
  """
  text = os.fspath(where)
  if is_local(where):
    if '\\' in text:
      raise ValueError(
          f'{who}: {text} has a backslash, which tensorstore takes for a slash:'
          ' it would read and write elsewhere. Give a path without.'
      )
    return
  found = [x for x in _NOT_IN_URLS if x in text]
  if found:
    raise ValueError(
        f'{who}: {text} has a {found[0]!r}, at which a URL of a bucket ends for'
        ' Orbax: it would read and write elsewhere. Give a path without.'
    )


def is_local(where: epath.PathLike) -> bool:
  """Whether a path from `path` is on this machine."""
  return '://' not in os.fspath(where)


def _in_bucket(text: str, scheme: str, who: str) -> epath.Path:
  """Returns the path of a URL that is spelt well."""
  bucket, _, rest = text.removeprefix(f'{scheme}://').partition('/')
  if bucket in ('', '.', '..'):
    raise ValueError(
        f'{who}{text!r} names no bucket. Give {scheme}://bucket/folder.'
    )
  if scheme == 'gs' and not _BUCKET.fullmatch(bucket):
    raise ValueError(
        f'{who}{text!r}: {bucket!r} is no name of a bucket, which has lower-case'
        " letters, digits, '-', '_' and '.'."
    )
  if not all(' ' <= x != '\x7f' for x in rest):
    raise ValueError(
        f'{who}{text!r} has a control character, such as a line break, which no'
        ' name in a bucket may have.'
    )
  # In a bucket, `..` would be the name of a folder.
  rest = posixpath.normpath(rest.strip('/') or '.')
  if rest.split('/')[0] == '..':
    raise ValueError(f'{who}{text!r} leads out of its bucket.')
  text = f'{scheme}://{bucket}' + ('' if rest == '.' else f'/{rest}')
  module, package = _SCHEMES[scheme]
  has_fsspec = all(map(_is_installed, ('fsspec', module)))
  if scheme == 'gs' and _uses_tensorflow():
    return epath.Path(text)
  elif has_fsspec:
    return FsspecPath(text)
  elif 'tensorflow_io' in sys.modules:
    return epath.Path(text)  # It teaches TensorFlow s3:// and az://.
  raise ModuleNotFoundError(
      f'{who}{text}: {scheme}:// is read with {package}, which is not installed:'
      f' pip install {package}'
  )


class FsspecPath(gpath.PosixGPath):
  """A path that fsspec reads.

  If TensorFlow is installed, etils uses it for all URLs, but it reads only
  gs://.
  """

  @property
  def _backend(self) -> _backends.Backend:
    return _backends.fsspec_backend

  def refresh(self) -> None:
    """Drops listings, which fsspec keeps even if others change the bucket."""
    _backends.fsspec_backend.fs(self).invalidate_cache()


def _registered(text: str) -> epath.Path | None:
  """Returns a path of a scheme that a package registered with etils."""
  try:
    return epath.Path(text)
  except KeyError:
    return None


def _unknown(text: str, match: re.Match[str]) -> str:
  """Returns advice on a URL of another scheme."""
  scheme, rest = match['scheme'].lower(), match['rest']
  if scheme == 'file':
    return f'{text!r}: give a local path without file://: {"/" + rest!r}.'
  if scheme in _ALIASES or scheme in _SCHEMES:
    return f'{text!r}: give {_spelt(text)!r}.'
  for host, instead in _WEB.items():
    if scheme in ('http', 'https') and rest.startswith(host):
      return f'{text!r}: give {f"{instead}://{rest.removeprefix(host)}"!r}.'
  known = ', '.join(f'{x}://' for x in _SCHEMES)
  return (
      f'{text!r} looks like a URL, and {scheme}:// cannot be read or written'
      f' here: give a local path, or one that starts with one of {known}.'
  )


def _spelt(text: str) -> str:
  """Returns a URL with two slashes, in lower case as far as that matters."""
  match = _URL.match(text) or _NO_SLASH.match(text)
  assert match is not None
  scheme = match['scheme'].lower()
  rest = match['rest'].replace('\\', '/').strip().strip('\'"')
  return f'{_ALIASES.get(scheme, scheme)}://{rest}'


@functools.cache
def _is_installed(module: str) -> bool:
  return importlib.util.find_spec(module) is not None


def _uses_tensorflow() -> bool:
  """Whether etils reads URLs with TensorFlow."""
  off = os.environ.get('EPATH_USE_TF', '').lower() in ('0', 'f', 'false', 'no')
  return not off and _is_installed('tensorflow')
