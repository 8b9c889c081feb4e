"""Memory, disk, credentials and the bucket, as they are and as they are not."""

from http import server
import threading
import time

import pytest

from gemma4_lora.doctor import _command
from gemma4_lora.doctor import _devices_in_child
from gemma4_lora.doctor import _finding
from gemma4_lora.doctor import _machine


def test_memory_and_disk(tmp_path):
  file = tmp_path / 'meminfo'
  file.write_text('MemTotal:  90 kB\nMemAvailable:   16777216 kB\n')
  assert str(_machine.memory(file)) == 'OK     memory: 16.0 GiB free'
  file.write_text('MemAvailable:   1048576 kB\n')
  little = _machine.memory(file)
  assert 'Real models want 8 GiB' in str(little) and little.ok
  assert _machine.memory(tmp_path / 'none').ok
  assert 'GiB free in' in _machine.disk(str(tmp_path)).says
  assert 'Set TMPDIR' in str(_machine.disk(str(tmp_path / 'none')))


def test_credentials(tmp_path):
  env = {'HOME': str(tmp_path), 'GCE_METADATA_HOST': 'here'}
  assert 'service account' in str(_machine.credentials(env))
  folder = tmp_path / '.config' / 'gcloud'
  folder.mkdir(parents=True)
  (folder / 'application_default_credentials.json').write_text('{}')
  assert str(folder) in str(_machine.credentials(env))
  env['GOOGLE_APPLICATION_CREDENTIALS'] = str(tmp_path / 'none')
  wrong = _machine.credentials(env)
  assert not wrong.ok and 'unset GOOGLE_APPLICATION_CREDENTIALS' in wrong.fix
  env['GOOGLE_APPLICATION_CREDENTIALS'] = str(
      folder / 'application_default_credentials.json'
  )
  assert _machine.credentials(env).ok


@pytest.fixture(name='storage')
def _storage():
  """Answers as the path of its address says."""

  class _Handler(server.BaseHTTPRequestHandler):

    def do_GET(self):  # noqa: N802
      if self.path.startswith('/slow'):
        time.sleep(1)
      self.send_response(403 if self.path.startswith('/no') else 200)
      self.end_headers()
      self.wfile.write(b'{}')

    def log_message(self, *args):
      pass

  made = server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
  threading.Thread(target=made.serve_forever, daemon=True).start()
  yield f'http://127.0.0.1:{made.server_port}'
  made.shutdown()
  made.server_close()


def test_the_bucket(storage):
  assert 'answers, in' in str(_machine.bucket(timeout_s=5, api=storage))
  for api, says in (
      (f'{storage}/no', 'answers 403'),
      (f'{storage}/slow', 'does not answer (timed out)'),
      ('http://127.0.0.1:1', 'does not answer ('),
  ):
    wrong = _machine.bucket(timeout_s=0.2, api=api)
    assert not wrong.ok and says in str(wrong)
    assert f'let this machine reach {api}' in wrong.fix


@pytest.mark.parametrize(
    ('code', 'expected', 'says'),
    [
        ('print(\'["gpu", "H200", 2]\')', 'gpu', 'OK     devices: 2 x H200'),
        ('print(\'["cpu", "cpu", 1]\')', 'cpu', 'OK     devices: 1 x cpu'),
        (
            'print(\'["cpu", "cpu", 1]\')',
            'tpu',
            'though this machine has a TPU',
        ),
        ('raise ImportError("no jaxlib")', 'cpu', 'ImportError: no jaxlib.'),
        (
            'import time; time.sleep(9)',
            'cpu',
            'found none in 1 s. Does another',
        ),
    ],
)
def test_devices(code, expected, says):
  timeout_s = 1 if 'sleep' in code else 60
  found = _devices_in_child.check(
      expected=expected, timeout_s=timeout_s, code=code
  )
  assert says in str(found)


def test_what_is_wrong_is_the_exit_status(monkeypatch, capsys):
  findings = [
      _finding.Finding(subject='a', says='1'),
      _finding.Finding(subject='b', says='none', fix='Do so', is_note=True),
  ]
  monkeypatch.setattr(_command, '_findings', lambda: iter(findings))
  assert _command.main([]) == 0
  findings.append(_finding.Finding(subject='c', says='2', fix='Type: x'))
  assert _command.main([]) == 1
  out = capsys.readouterr().out
  assert out.endswith(
      'OK     a: 1\nnote   b: none. Do so\nWRONG  c: 2. Type: x\n'
      '1 wrong: see above what to type.\n'
  )
