"""A signal is remembered while a run trains; a second SIGINT ends it."""

import signal
import subprocess
import sys
import textwrap

import pytest

from gemma4_lora.host import _stop_signals

_HEAD = """
import hashlib, os, signal, sys, time
from gemma4_lora.host import _stop_signals
signals = _stop_signals.of_process()
def send(name):
  os.kill(os.getpid(), getattr(signal, name))
"""


def _run(code, *, sends=()):
  """Runs code in a process of its own; sends a signal at each line of it."""
  process = subprocess.Popen(
      [sys.executable, '-c', _HEAD + textwrap.dedent(code)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
  )
  for number in sends:
    process.stdout.readline()
    process.send_signal(number)
  try:
    _, errors = process.communicate(timeout=60)
  finally:
    process.kill()
  return process.returncode, errors


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
@pytest.mark.parametrize('how', ['begin()', 'install(several_hosts=False)'])
def test_before_a_run_it_ends_the_process(name, how):
  status, errors = _run(f"""
    signals.{how}
    send('{name}')
    print('goes on')
  """)
  assert status == _stop_signals.STOPPED == 75
  assert errors == (
      f'gemma4_lora: {name}: stopped. The same command goes on from the last'
      ' checkpoint, if there is one.\n'
  )


def test_the_command_ends_while_it_imports():
  status, errors = _run("""
    class Finder:
      def find_spec(self, name, *_):
        if name == 'jax':
          send('SIGINT')
    from gemma4_lora import __main__
    sys.meta_path.insert(0, Finder())
    __main__.main(['train', '--cfg=quickstart', '--workdir=run'])
  """)
  assert status == 75, errors
  assert errors.startswith('gemma4_lora: SIGINT: stopped.')
  assert errors.count('\n') == 1


def test_a_run_does_not_begin_if_python_lost_what_the_handler_raised():
  status, errors = _run("""
    signals.install(several_hosts=False)
    class Collected:
      def __del__(self):
        send('SIGTERM')
    Collected()
    print('goes on')
    signals.check()
    sys.exit('began')
  """)
  assert status == 75, errors
  assert 'Exception ignored' in errors
  assert errors.count('SIGTERM: stopped') == 2


def test_in_a_run_it_is_remembered_and_a_second_sigterm_waits():
  status, errors = _run("""
    signals.install(several_hosts=False)
    signals.is_training = True
    assert signals.received is None
    send('SIGTERM')
    send('SIGTERM')
    send('SIGINT')
    assert signals.received == 'SIGTERM', signals.received
    signals.remove()
    assert signals.received is None
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1
    signals.install(several_hosts=False)
    send('SIGINT')
    assert signals.received == 'SIGINT'
  """)
  assert (status, errors.count('Once more stops at once')) == (0, 1), errors


@pytest.mark.parametrize(
    'work',
    [
        'time.sleep(60)',
        # Which runs no Python in between, as a compiler does.
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
    ],
)
def test_a_second_sigint_ends_it_at_once(work):
  code = f"""
    signals.install(several_hosts=False)
    signals.is_training = True
    print('1', flush=True)
    import threading
    threading.Timer(1, print, ['2'], dict(flush=True)).start()
    {work}
  """
  status, errors = _run(code, sends=[signal.SIGINT, signal.SIGINT])
  assert status == 130
  assert 'Traceback' not in errors


def test_in_a_notebook_a_second_interrupt_gives_control_back():
  status, errors = _run("""
    sys.ps1 = '>>> '
    signals.install(several_hosts=False)
    signals.is_training = True
    send('SIGINT')
    try:
      send('SIGINT')
      sys.exit('no control')
    except KeyboardInterrupt:
      pass
    signals.remove()
    try:
      _stop_signals.stop('SIGINT: saved', 'SIGINT')
    except KeyboardInterrupt as e:
      assert 'saved' in str(e)
  """)
  assert status == 0, errors


def test_on_several_hosts_jax_has_sigterm_and_is_told_of_sigint():
  status, errors = _run("""
    signals.install(several_hosts=True)
    signals.is_training = True
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    got = []
    signal.signal(signal.SIGTERM, lambda *_: got.append('SIGTERM'))
    send('SIGINT')
    assert got == ['SIGTERM']
  """)
  assert status == 0, errors


def test_handlers_of_the_user_and_event_loops_stay():
  status, errors = _run("""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    mine = lambda *_: None
    signal.signal(signal.SIGTERM, mine)
    signals.install(several_hosts=False)
    assert signal.getsignal(signal.SIGTERM) is mine
    signals.remove()
    assert signal.getsignal(signal.SIGTERM) is mine
    assert signal.set_wakeup_fd(-1) == write
  """)
  assert status == 0, errors


def test_a_thread_takes_no_signals():
  status, errors = _run("""
    import threading
    def f():
      signals.install(several_hosts=False)
      signals.remove()
    thread = threading.Thread(target=f)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
  """)
  assert status == 0, errors
