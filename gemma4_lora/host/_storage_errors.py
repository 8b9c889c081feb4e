"""Turns errors of buckets into one line that says what to do.

TensorFlow, tensorstore and fsspec have their own errors, some of them pages
long. This module turns them into Python errors with the path.
"""

from collections.abc import Iterator
import contextlib
import os
import re
import traceback
from typing import Any

from etils import epath

from gemma4_lora.host import _paths

# Only errors of these packages are read. Other messages may contain a 403.
_PACKAGES = (
    'adlfs aiobotocore aiohttp azure botocore fsspec gcsfs google'
    ' huggingface_hub httpx httpx2 requests s3fs tensorflow urllib3'
).split()
# These also have other errors: read only if a bucket is in use.
_OTHERS = (
    'google',
    'httpx',
    'httpx2',
    'huggingface_hub',
    'requests',
    'urllib3',
)
_URL = re.compile(r'(?:gs|s3|az|hf)://[\w./-]*\w')
# Tensorstore raises ValueError and the like, with a status in front.
_STATUS = re.compile(
    r'(ABORTED|DATA_LOSS|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL'
    r'|NOT_FOUND|PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAUTHENTICATED'
    r'|UNAVAILABLE|UNKNOWN)\b'
)
# In order: the first that is in the error's type or message.
_KINDS = (
    (
        'credentials',
        r'\b401\b|anonymous caller|unauthenticated|DefaultCredentialsError'
        r'|RefreshError|no ?credentials|credentials were not found'
        r'|could not (automatically )?(determine|find).{0,20}credential'
        r'|unable to locate credentials|invalid_grant|invalid authentication'
        r'|CredentialUnavailable|ClientAuthentication|Retrieving metadata from'
        r' GCE|metadata\.google\.internal|GatedRepo|Invalid username or password',
    ),
    ('bucket', r'bucket does not exist|NoSuchBucket|RepositoryNotFound'),
    ('permission', r'\b403\b|permission.?denied|forbidden|access.?denied'),
    ('busy', r'\b429\b|resource.?exhausted|rate limit|SlowDown'),
    (
        'network',
        r"couldn't resolve|could not resolve|name resolution|connect|timed? ?out"
        r'|deadline|unavailable|aborted|retry attempts|\b50[0234]\b|cURL'
        r'|EndpointConnection|network|ssl',
    ),
    ('missing', r'\b404\b|not.?found|no such'),
)
_LOG_IN = {
    'gs': (
        'gcloud auth application-default login (in Colab: google.colab.auth'
        '.authenticate_user()), or set GOOGLE_APPLICATION_CREDENTIALS to the'
        ' file of a key'
    ),
    's3': 'aws configure, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY',
    'az': 'az login, or set AZURE_STORAGE_CONNECTION_STRING',
    'hf': 'hf auth login, or set HF_TOKEN',
}


@contextlib.contextmanager
def explained(
    path: epath.PathLike, *, who: str, doing: str = 'read'
) -> Iterator[None]:
  """Raises errors of a bucket as one line that says what to do.

  Other errors, and those of local paths, pass.

  Args:
    path: What is read or written.
    who: What asks, for messages.
    doing: `'read'` or `'write'`.

  Raises:
    PermissionError: No credentials, or not for this.
    FileNotFoundError: There is no such bucket, or it is gone.
    ConnectionError: The storage cannot be reached.
  """
  try:
    yield
  except Exception as e:
    if _paths.is_local(path):
      raise
    new = explain(e, path, who=who, doing=doing)
    if new is None:
      raise
    raise new from e


def forget_files(error: BaseException) -> None:
  """Releases the files of a failed write.

  A file of TensorFlow tries to upload once more when it is destroyed. An error
  holds it by its traceback, in a notebook for hours: then an old object would
  come over a new one. So it must be destroyed now.

  Args:
    error: What the write raised.
  """
  cause: BaseException | None = error
  while cause is not None:
    traceback.clear_frames(cause.__traceback__)
    cause = cause.__cause__ or cause.__context__


def explain(
    error: BaseException,
    path: epath.PathLike | None = None,
    *,
    who: str = '',
    doing: str = 'read',
) -> OSError | None:
  """Returns an error of a bucket as one of Python; None for any other error.

  Args:
    error: What was raised.
    path: What was read or written, None if not known.
    who: What asked, for messages.
    doing: `'read'` or `'write'`.
  """
  found = _of_storage(error, is_sure=path is not None)
  if found is None or isinstance(found, ExplainedError):
    return found
  text = f'{type(found).__name__}: {found}'
  if path is None and (url := _URL.search(text)):
    path = url[0]
  kind = next((k for k, p in _KINDS if re.search(p, text, re.I)), None)
  if kind is None or (kind == 'missing' and path is None):
    return None
  where = 'a bucket' if path is None else os.fspath(path)
  start = f'{who}: {where}' if who else where
  scheme, bucket = _bucket(path)
  if kind == 'credentials':
    return ExplainedPermissionError(
        f'{start}: no credentials for {scheme}://. Log in:'
        f' {_LOG_IN.get(scheme, _LOG_IN["gs"])}.'
    )
  if kind == 'bucket' or (kind == 'missing' and doing == 'write'):
    return ExplainedNotFoundError(
        f'{start}: there is no bucket {bucket}. Check its name, or make it'
        f'{_make(scheme, bucket)}.'
    )
  if kind == 'permission':
    return ExplainedPermissionError(
        f'{start}: your account may not {doing} there. Ask who owns {bucket} for'
        f' {_role(scheme, doing)}.'
    )
  if kind == 'missing':
    return ExplainedNotFoundError(f'{start}: it is not there, or no longer.')
  if kind == 'busy':
    return ExplainedConnectionError(
        f'{start}: {scheme}:// refuses so many requests. Try again later.'
    )
  return ExplainedConnectionError(
      f'{start}: {scheme}:// cannot be reached, or the connection broke:'
      f' {_short(found)}. Try again.'
  )


class ExplainedError(OSError):
  """An error of a bucket with a message for users."""


class ExplainedPermissionError(ExplainedError, PermissionError):
  """No credentials, or not enough of them."""


class ExplainedNotFoundError(ExplainedError, FileNotFoundError):
  """No such bucket or object."""


class ExplainedConnectionError(ExplainedError, ConnectionError):
  """The storage cannot be reached."""


def _of_storage(error: BaseException | None, *, is_sure: bool) -> Any:
  """Returns the first error of a storage among an error and its causes.

  Args:
    error: The error.
    is_sure: Whether a bucket was read or written.
  """
  seen: set[int] = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    package = type(error).__module__.partition('.')[0]
    if (
        isinstance(error, ExplainedError)
        or (package in _PACKAGES and (is_sure or package not in _OTHERS))
        or (is_sure and isinstance(error, (ConnectionError, TimeoutError)))
        # Not of XLA, whose errors are RuntimeErrors.
        or (isinstance(error, ValueError) and _STATUS.match(str(error)))
    ):
      return error
    error = error.__cause__ or error.__context__
  return None


def _bucket(path: epath.PathLike | None) -> tuple[str, str]:
  """Returns scheme and bucket of a path."""
  if path is None or _paths.is_local(path):
    return 'gs', 'the bucket'
  scheme, _, rest = os.fspath(path).partition('://')
  return scheme, f'{scheme}://{rest.partition("/")[0]}'


def _make(scheme: str, bucket: str) -> str:
  command = {'gs': 'gcloud storage buckets create', 's3': 'aws s3 mb'}
  return f': {command[scheme]} {bucket}' if scheme in command else ''


def _role(scheme: str, doing: str) -> str:
  if scheme != 'gs':
    return f'the right to {doing}'
  return 'roles/storage.' + (
      'objectViewer' if doing == 'read' else 'objectUser'
  )


def _short(error: BaseException, limit: int = 160) -> str:
  # TensorFlow names its own function first.
  text = re.sub(r'\{\{.*?\}\}', '', str(error))
  text = ' '.join(text.split()) or type(error).__name__
  return text if len(text) <= limit else f'{text[:limit]}…'
