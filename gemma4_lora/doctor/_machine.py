"""Memory, disk, credentials, and the bucket of released checkpoints."""

from collections.abc import Iterator
from collections.abc import Mapping
import json
import os
import pathlib
import shutil
import socket
import tempfile
import time
from urllib import error
from urllib import request

from gemma4_lora.doctor import _finding

# The folder of `gm.ckpts.CheckpointPath` in the JSON API: it is public.
_BUCKET = 'gemma-data'
_API = 'https://storage.googleapis.com'
_GIB = 2**30
# E2B in bfloat16 is 10 GB: the host holds parts of it while it reads.
_MEMORY_GIB = 8
_DISK_GIB = 5


def check(*, timeout_s: float = 5) -> Iterator[_finding.Finding]:
  """Yields what this machine has; asks the bucket for at most `timeout_s`."""
  yield memory(pathlib.Path('/proc/meminfo'))
  yield disk(tempfile.gettempdir())
  yield credentials(os.environ)
  yield bucket(timeout_s=timeout_s)


def memory(meminfo: pathlib.Path) -> _finding.Finding:
  """Returns the memory that is free, which may be less than the machine's."""
  try:
    fields = dict(
        line.split(':', 1) for line in meminfo.read_text().splitlines()
    )
    free = int(fields['MemAvailable'].split()[0]) * 1024 / _GIB
  except (OSError, LookupError, ValueError):
    return _finding.Finding(subject='memory', says='not known here')
  little = free < _MEMORY_GIB
  return _finding.Finding(
      subject='memory',
      says=f'{free:.1f} GiB free',
      fix=f'Real models want {_MEMORY_GIB} GiB or more of the host: close other'
      ' programs, or take a larger machine'
      if little
      else '',
      is_note=True,
  )


def disk(folder: str) -> _finding.Finding:
  """Returns the space where caches and temporary files go."""
  try:
    free = shutil.disk_usage(folder).free / _GIB
  except OSError as e:
    return _finding.Finding(
        subject='disk', says=f'{folder}: {e}', fix='Set TMPDIR to a folder'
    )
  return _finding.Finding(
      subject='disk',
      says=f'{free:.1f} GiB free in {folder}',
      fix=f'Free {_DISK_GIB} GiB there, or set TMPDIR, and let'
      ' --cfg.workdir=... be elsewhere'
      if free < _DISK_GIB
      else '',
  )


def credentials(env: Mapping[str, str]) -> _finding.Finding:
  """Returns where credentials of Google Cloud were found."""
  login = 'gcloud auth application-default login'
  note = f'For buckets of your own and for jobs, type: {login}'
  named = env.get('GOOGLE_APPLICATION_CREDENTIALS')
  if named:
    try:
      json.loads(pathlib.Path(named).read_text())
    except (OSError, ValueError) as e:
      return _finding.Finding(
          subject='credentials',
          says=f'GOOGLE_APPLICATION_CREDENTIALS={named} cannot be read ({e})',
          fix=f'Type: unset GOOGLE_APPLICATION_CREDENTIALS, then {login}',
      )
    return _finding.Finding(subject='credentials', says=named)
  folder = env.get('CLOUDSDK_CONFIG') or os.path.join(
      env.get('HOME', ''), '.config', 'gcloud'
  )
  file = pathlib.Path(folder, 'application_default_credentials.json')
  if file.exists():
    return _finding.Finding(subject='credentials', says=str(file))
  if env.get('GCE_METADATA_HOST') or _on_google_cloud():
    return _finding.Finding(
        subject='credentials', says="of this machine's service account"
    )
  return _finding.Finding(
      subject='credentials', says='none', fix=note, is_note=True
  )


def bucket(*, timeout_s: float, api: str | None = None) -> _finding.Finding:
  """Returns whether released checkpoints can be read.

  Args:
    timeout_s: Longest wait for the host's address, and for the answer.
    api: URL of Cloud Storage; default: $STORAGE_EMULATOR_HOST or Google's.
  """
  api = api or os.environ.get('STORAGE_EMULATOR_HOST') or _API
  if '://' not in api:
    api = f'http://{api}'
  url = f'{api}/storage/v1/b/{_BUCKET}/o?maxResults=1&prefix=checkpoints'
  subject = f'gs://{_BUCKET}'
  begin = time.monotonic()
  try:
    with request.urlopen(url, timeout=timeout_s) as answer:
      json.loads(answer.read(2**20))
  except error.HTTPError as e:
    says = f'answers {e.code} {e.reason}'
  except (OSError, ValueError) as e:
    says = f'does not answer ({getattr(e, "reason", e)})'
  else:
    seconds = time.monotonic() - begin
    return _finding.Finding(
        subject=subject, says=f'answers, in {seconds:.1f} s'
    )
  return _finding.Finding(
      subject=subject,
      says=says,
      fix='Released checkpoints are read from there: let this machine reach'
      f' {api}, or copy one by gcloud storage cp -r and give its path',
  )


def _on_google_cloud() -> bool:
  try:
    socket.getaddrinfo('metadata.google.internal', 80)
  except OSError:
    return False
  return True
