"""Cloud Storage in a network and mount namespace: run by `buckets.serve` alone.

    unshare --mount --net python bucket_server.py FOLDER FAKE_GCS_SERVER

It needs nothing but the standard library, so that it starts at once. It ends when
its standard input does, so that it never outlives whoever started it.

All clients come through the proxy here: TensorFlow by TLS on port 443, tensorstore
and google-cloud-storage on port 80. The proxy does what `FOLDER/control.json` says
(see `buckets.Buckets`) and writes two lines to `FOLDER/requests.jsonl` per request:
`"began"` before it is answered, and what it was when it has ended.
"""

import asyncio
from collections.abc import Iterable
import itertools
import json
import pathlib
import re
import ssl
import subprocess
import sys
import time
import urllib.parse

_HOSTS = 'www.googleapis.com storage.googleapis.com oauth2.googleapis.com'
_PORT = 4443
_PIECE_BYTES = 2**18
# `/storage/v1/b/BUCKET/o/OBJECT`, also below `/download` and `/upload`; `/BUCKET/
# OBJECT` is the address of the XML API, which TensorFlow reads from.
_API = re.compile(
    r'(?:/download|/upload|/resumable/upload)?/storage/v1/b/([^/]+)(?:/o/?(.*))?'
)
_XML = re.compile(r'/([^/]+)/(.*)')
# Headers of one connection.
_DROPPED = ('connection', 'expect', 'keep-alive')


class _Cut(Exception):
  """A connection ends here.

  Attributes:
    done: After as many bytes of a body.
  """

  def __init__(self, done: int = 0):
    super().__init__()
    self.done = done


class _Headers:
  """Headers, found in any case and sent on in their own, as TensorFlow needs."""

  def __init__(self, lines: Iterable[str]):
    pairs = [line.partition(':') for line in lines]
    self._pairs = [(name.strip(), value.strip()) for name, _, value in pairs]
    # It is TensorFlow's, and refused by Go.
    self.drop('transfer-encoding', value='identity')

  def get(self, name: str) -> str:
    return dict((k.lower(), v) for k, v in self._pairs).get(name, '')

  def drop(self, *names: str, value: str | None = None) -> None:
    self._pairs = [
        (k, v)
        for k, v in self._pairs
        if k.lower() not in names or value not in (None, v)
    ]

  def encode(self, first: str) -> bytes:
    lines = [f'{k}: {v}' for k, v in self._pairs]
    return '\r\n'.join([first, *lines, '', '']).encode('latin1')

  @property
  def has_body(self) -> bool:
    return self.is_chunked or self.length > 0

  @property
  def is_chunked(self) -> bool:
    return self.get('transfer-encoding').lower() == 'chunked'

  @property
  def length(self) -> int:
    return int(self.get('content-length') or 0)


class _Control:
  """The control file, read again whenever it changes."""

  def __init__(self, path: pathlib.Path):
    self._path, self._text = path, ''
    self._settings, self._counts = {}, []

  def settings(self) -> dict:
    text = self._path.read_text()
    if text != self._text:
      self._text, self._settings = text, json.loads(text)
      self._counts = [0] * len(self._settings['faults'])
    return self._settings

  def fault(self, method: str, target: str) -> dict | None:
    """Returns what this request meets, if anything."""
    found = None
    for i, fault in enumerate(self.settings()['faults']):
      if not re.search(fault['match'], f'{method} {target}'):
        continue
      self._counts[i] += 1
      first, times = fault['first'], fault['times']
      if self._counts[i] >= first and (
          times is None or self._counts[i] < first + times
      ):
        found = found or fault
    return found


class _Proxy:
  """Forwards HTTP/1.1 requests, one after the other on each connection."""

  def __init__(self, folder: pathlib.Path):
    self._control = _Control(folder / 'control.json')
    self._log = (folder / 'requests.jsonl').open('a', buffering=1)
    self._numbers = itertools.count()
    self._free_at = 0.0  # When what was sent so far has gone down the line.

  async def serve(self, reader, writer) -> None:
    """Serves one connection of a client."""
    try:
      upstream = await asyncio.open_connection(
          '127.0.0.1', _PORT, limit=_PIECE_BYTES
      )
    except OSError:
      writer.close()
      return
    try:
      while await self._request((reader, writer), upstream):
        pass
    except (OSError, asyncio.IncompleteReadError, _Cut):
      pass
    finally:
      writer.close()
      upstream[1].close()

  async def _request(self, client, upstream) -> bool:
    """Forwards one request and its response; False if it was the last."""
    first, headers = await _head(client[0])
    if not first:
      return False
    method, target, _ = first.split(' ', 2)
    settings = self._control.settings()
    fault = self._control.fault(method, target)
    line, kind = _describe(method, target, headers), 'received'
    number = next(self._numbers)
    # A client has the answer before the line that says so is written: who reads
    # the log waits for what has begun.
    self._write(number, 'began')
    try:
      delay = settings['latency_s'] + (fault and fault['delay_s'] or 0)
      if delay:
        await asyncio.sleep(delay)
      if headers.has_body and headers.get('expect'):
        client[1].write(b'HTTP/1.1 100 Continue\r\n\r\n')
      if fault and fault['status']:
        await self._copy(client[0], None, headers)
        line['status'] = fault['status']
        client[1].write(_refusal(fault['status']))
        await client[1].drain()
        return True
      limit = fault and fault['after_bytes']
      is_last = headers.get('connection').lower() == 'close'
      headers.drop(*_DROPPED)
      upstream[1].write(headers.encode(first))
      line[kind] = await self._copy(
          client[0], upstream[1], headers, limit if headers.has_body else None
      )
      kind = 'sent'
      answer, headers = await _head(upstream[0])
      if not answer:
        raise _Cut()
      line['status'] = int(answer.split()[1])
      client[1].write(headers.encode(answer))
      if method != 'HEAD' and line['status'] not in (204, 304):
        line[kind] = await self._copy(upstream[0], client[1], headers, limit)
      await client[1].drain()
      return not is_last
    except _Cut as e:
      line[kind] = e.done
      raise
    finally:
      line['seconds'] = time.time() - line['time']
      self._write(number, line)

  def _write(self, number: int, said: str | dict) -> None:
    self._log.write(json.dumps([number, said]) + '\n')

  async def _copy(self, reader, writer, headers, limit=None) -> int:
    """Forwards a body; cuts the connection after `limit` bytes."""
    done = 0
    async for data, is_framing in _body(reader, headers):
      if not is_framing:
        data = data[: None if limit is None else limit - done]
        done += len(data)
        await self._throttle(len(data))
      if writer is not None:
        writer.write(data)
        await writer.drain()
      if done == limit:
        raise _Cut(done)
    if limit is not None:
      raise _Cut(done)
    return done

  async def _throttle(self, count: int) -> None:
    rate = self._control.settings()['bytes_per_s']
    if rate:
      now = time.monotonic()
      self._free_at = max(self._free_at, now) + count / rate
      if self._free_at - now > 0.002:  # What is shorter, a sleep makes longer.
        await asyncio.sleep(self._free_at - now)


async def _head(reader) -> tuple[str, _Headers]:
  """Reads a first line and headers; nothing at the connection's end."""
  try:
    data = await reader.readuntil(b'\r\n\r\n')
  except asyncio.IncompleteReadError:
    return '', _Headers([])
  first, *lines = data.decode('latin1').split('\r\n')[:-2]
  return first, _Headers(lines)


async def _body(reader, headers: _Headers):
  """Yields the data of a body, and whether it is only chunked framing."""
  if not headers.is_chunked:
    async for data in _exactly(reader, headers.length):
      yield data, False
    return
  size = 1
  while size:
    line = await reader.readuntil(b'\r\n')
    size = int(line.split(b';')[0], 16)
    yield line, True
    async for data in _exactly(reader, size):
      yield data, False
    yield await reader.readuntil(b'\r\n'), True


async def _exactly(reader, count: int):
  while count:
    data = await reader.read(min(count, _PIECE_BYTES))
    if not data:
      raise _Cut()
    count -= len(data)
    yield data


def _describe(method: str, target: str, headers: _Headers) -> dict:
  """Returns a line of the log, as far as the request says it."""
  url = urllib.parse.urlsplit(target)
  query = urllib.parse.parse_qs(url.query)
  match = _API.fullmatch(url.path) or _XML.fullmatch(url.path)
  bucket, name = match.groups() if match else (None, None)
  return {
      'time': time.time(),
      'method': method,
      'target': target,
      'bucket': bucket,
      'object': urllib.parse.unquote(name or '')
      or query.get('name', [None])[0],
      'range': headers.get('range').removeprefix('bytes=') or None,
      'status': None,
      'received': 0,
      'sent': 0,
  }


def _refusal(status: int) -> bytes:
  """Returns what Cloud Storage answers."""
  messages = {
      401: 'Anonymous caller does not have storage.objects.get access to the'
      ' Google Cloud Storage object. Permission denied on resource (or it may'
      ' not exist).',
      403: 'someone@example.com does not have storage.objects.get access to the'
      ' Google Cloud Storage object. Permission denied on resource (or it may'
      ' not exist).',
      404: 'The specified bucket does not exist.',
      429: 'The rate limit for the project has been exceeded.',
      503: 'Backend Error',
  }
  message = messages.get(status, 'Fault of a test')
  body = json.dumps({'error': {'code': status, 'message': message}}).encode()
  headers = _Headers(
      ['Content-Type: application/json', f'Content-Length: {len(body)}']
  )
  return headers.encode(f'HTTP/1.1 {status} Refused') + body


def _prepare(folder: pathlib.Path) -> None:
  """Sends all names of Cloud Storage here, and lets clients trust us."""
  subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)
  hosts = pathlib.Path('/etc/hosts')
  certificates = pathlib.Path('/etc/ssl/certs/ca-certificates.crt')
  (folder / 'hosts').write_text(f'{hosts.read_text()}\n127.0.0.1 {_HOSTS}\n')
  (folder / 'trusted.crt').write_bytes(
      certificates.read_bytes() + (folder / 'ca.crt').read_bytes()
  )
  for source, target in (
      (folder / 'hosts', hosts),
      (folder / 'trusted.crt', certificates),
  ):
    subprocess.run(['mount', '--bind', source, target], check=True)


async def _wait(server: subprocess.Popen) -> None:
  """Waits until the server answers."""
  while True:
    try:
      _, writer = await asyncio.open_connection('127.0.0.1', _PORT)
      writer.close()
      return
    except OSError:
      if server.poll() is not None:
        raise RuntimeError('fake-gcs-server has ended') from None
      await asyncio.sleep(0.02)


async def _main(folder: pathlib.Path, server: subprocess.Popen) -> None:
  context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
  context.load_cert_chain(folder / 'server.crt', folder / 'server.key')
  proxy = _Proxy(folder)
  await _wait(server)
  settings = {'host': '127.0.0.1', 'limit': _PIECE_BYTES}
  await asyncio.start_server(proxy.serve, port=443, ssl=context, **settings)
  await asyncio.start_server(proxy.serve, port=80, **settings)
  print('ready', flush=True)
  await asyncio.to_thread(sys.stdin.read)


if __name__ == '__main__':
  _folder = pathlib.Path(sys.argv[1])
  _prepare(_folder)
  with (_folder / 'server.log').open('w') as _log:
    _server = subprocess.Popen(
        [
            sys.argv[2],
            *('-scheme', 'http', '-host', '127.0.0.1', '-port', str(_PORT)),
            *('-backend', 'filesystem'),
            *('-filesystem-root', _folder / 'store'),
            *('-external-url', 'https://storage.googleapis.com'),
            *('-public-host', 'storage.googleapis.com', '-log-level', 'warn'),
        ],
        stdout=_log,
        stderr=_log,
        stdin=subprocess.DEVNULL,
    )
  try:
    asyncio.run(_main(_folder, _server))
  finally:
    _server.kill()
    _server.wait()
