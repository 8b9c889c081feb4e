"""A writer counts as alive exactly while it may write."""

import os
import subprocess
import sys

from gemma4_lora.host import _processes
from gemma4_lora.host.folders import _owner


def test_this_process_is_alive_only_for_what_it_writes_now():
  writer = _owner.make()
  assert not _owner.is_alive(writer, 0.0)  # A cell that was interrupted.
  with _owner.at_work(writer, lambda _: None):
    assert _owner.is_alive(writer, 1e6)
  assert not _owner.is_alive(writer, 0.0)


def test_a_process_of_this_machine_is_known_by_number_and_start():
  with subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1) as other:
    start = _processes.started(other.pid)
    writer = _owner.make() | {'pid': other.pid, 'start': start}
    assert _owner.is_alive(writer, 1e6)
    assert not _owner.is_alive(writer | {'start': '1'}, 0.0)
    for pid in (float('inf'), 'x', None, -1, 2**70):
      assert not _owner.is_alive(writer | {'pid': pid}, 0.0)
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert not _owner.is_alive(writer, 0.0)  # A zombie.
  assert not _owner.is_alive(writer, 0.0)


def test_one_of_another_machine_is_known_by_its_silence():
  writer = _owner.make() | {'machine': 'another'}
  assert _owner.is_alive(writer, 60.0)
  assert _owner.is_alive(writer, None)
  assert _owner.is_alive(writer, -86400.0)  # The storage's clock was set back.
  assert not _owner.is_alive(writer, 3600.0)


def test_shows_that_it_lives(monkeypatch):
  monkeypatch.setattr(_owner, '_BEAT_S', 0.01)
  beats = []

  def beat(count):
    beats.append(count)
    if count == 1:
      raise OSError('once')

  with _owner.at_work(_owner.make(), beat) as stop:
    while len(beats) < 3:
      pass
    stop()
    count = len(beats)
  assert len(beats) == count
  assert beats == [*range(1, count + 1)]
