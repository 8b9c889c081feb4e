"""The emulated buckets, by tensorstore alone: TensorFlow takes long to import."""

import json
import sys

import pytest

from tests.lib import buckets as buckets_lib

_CLIENT = """
import json, sys
import tensorstore as ts

def read(**options):
  store = ts.KvStore.open({
      'driver': 'gcs', 'bucket': 'first', 'path': 'folder/',
      'gcs_request_retries': {
          'max_retries': 2, 'initial_delay': '1ms', 'max_delay': '1ms'
      },
  }).result()
  try:
    return store.read('a', **options).result().value.decode()
  except Exception as e:
    return f'{type(e).__name__}: {e}'

for line in sys.stdin:
  size = json.loads(line)
  if size:
    store = ts.KvStore.open('gs://first/folder/').result()
    store.write('a', b'x' * size).result()
  print(json.dumps([read(), read(byte_range=slice(2, 5))]), flush=True)
"""


@pytest.fixture(name='client')
def _client(buckets):
  """Writes an object of a size, if not 0; returns it, and three bytes of it."""
  buckets.make('first')
  with buckets.start(
      sys.executable, '-c', _CLIENT, stdin=-1, stdout=-1, text=True
  ) as process:

    def ask(size=0):
      process.stdin.write(f'{size}\n')
      process.stdin.flush()
      return json.loads(process.stdout.readline())

    yield ask


def test_buckets_keep_log_slow_down_refuse_and_cut(buckets, client):
  """One test, as each start of a server and a client takes a second."""
  assert client(2000) == ['x' * 2000, 'xxx']
  assert (buckets.folder('first') / 'folder' / 'a').read_text() == 'x' * 2000
  upload, whole, part = buckets.requests('first')
  assert (upload.method, upload.received) == ('POST', 2000)
  assert (whole.object, whole.range, whole.sent) == ('folder/a', None, 2000)
  assert (part.object, part.range, part.sent) == ('folder/a', '2-4', 3)

  buckets.forget()
  buckets.limit(latency_s=0.1, bytes_per_s=10_000)
  client()
  whole, part = buckets.requests()
  assert whole.seconds > 0.1 + 2000 / 10_000
  assert part.seconds > 0.1
  buckets.limit()

  buckets.fail('folder%2Fa', status=401)
  assert all('401' in answer for answer in client())
  buckets.heal()
  buckets.fail('alt=media', after_bytes=1000, times=1)
  buckets.forget()
  assert client() == ['x' * 2000, 'xxx']  # The second try of three.
  assert [x.sent for x in buckets.requests()] == [1000, 2000, 3]
  buckets.fail('alt=media', after_bytes=1000)
  whole, part = client()
  assert 'x' not in whole and part == 'xxx'


def test_a_function_runs_in_the_namespaces(buckets):
  """It sees only the names and the network of the emulator."""
  file = buckets.root / 'seen'
  buckets.call(_look, file)
  assert file.read_text() == '127.0.0.1 lo'


def _look(file):
  import socket

  address = socket.gethostbyname('www.googleapis.com')
  names = ' '.join(name for _, name in socket.if_nameindex())
  file.write_text(f'{address} {names}')


def test_a_fault_is_an_answer_or_a_cut(buckets):
  with pytest.raises(
      ValueError, match='one of status=, after_bytes= and delay_s='
  ):
    buckets.fail('x')


def test_it_says_why_there_are_no_namespaces(monkeypatch):
  monkeypatch.setenv('PATH', '/nowhere')
  reason = buckets_lib.why_not.__wrapped__()
  assert 'lacks unshare, nsenter' in reason
