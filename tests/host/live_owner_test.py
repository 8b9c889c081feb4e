"""A folder has one live process; no clock is asked."""

import dataclasses
import re
import subprocess
import sys
import threading
import time

from etils import epath
import pytest

from gemma4_lora.host import _live_owner
from gemma4_lora.host import _processes
from tests.lib import forked


@pytest.fixture(name='path')
def _path(tmp_path):
  return epath.Path(tmp_path) / 'owner.json'


@pytest.fixture(name='take')
def _take(path):
  """Takes the folder, with little patience; gives it back at the end."""
  taken = []

  def take(**kwargs):
    kwargs = {'patience_seconds': 0.4, 'beat_seconds': 0.05} | kwargs
    made = _live_owner.Ownership.take(path, **kwargs)
    taken.append(made)
    return made

  yield take
  for x in taken:
    x.release()


def _write(path, **changes):
  owner = dataclasses.replace(
      _live_owner._this_process(), key='other', **changes
  )
  _live_owner._write(path, owner)
  return owner


@pytest.fixture(name='process')
def _process():
  process = subprocess.Popen(['sleep', '60'])
  yield process
  process.kill()
  process.wait()


_TAKE = """
import sys, time
from gemma4_lora.host import _live_owner
for line in sys.stdin:
  path, start = line.split()
  time.sleep(max(0, float(start) - time.time()))
  try:
    _live_owner.Ownership.take(path)
    print('has it', flush=True)
  except _live_owner.OwnedError:
    print('has not', flush=True)
"""


def test_of_two_that_start_at_once_one_has_it(tmp_path):
  two = [
      subprocess.Popen(
          [sys.executable, '-c', _TAKE], stdin=-1, stdout=-1, text=True
      )
      for _ in range(2)
  ]
  try:
    for i in range(8):
      (tmp_path / str(i)).mkdir()
      start = time.time() + (3 if i == 0 else 0.1)
      for process in two:
        process.stdin.write(f'{tmp_path / str(i) / "owner.json"} {start}\n')
        process.stdin.flush()
      said = sorted(process.stdout.readline().strip() for process in two)
      assert said == ['has it', 'has not'], i
  finally:
    for process in two:
      process.kill()
      process.wait()


def _take_in_a_bucket(barrier, file):
  """Says in a file whether it has a folder in a bucket."""
  barrier.wait(60)
  try:
    _live_owner.Ownership.take('gs://runs/run/owner.json')
    file.write_text('has it')
  except _live_owner.OwnedError as e:
    file.write_text(str(e))
  barrier.wait(60)  # The other may ask whether this process lives.


def test_of_two_that_start_at_once_in_a_bucket_one_has_it(buckets, tmp_path):
  """Without a lock; the later one reads, and is slow to write."""
  buckets.make('runs')
  buckets.fail('POST .*owner.json', delay_s=1.5, first=2, times=1)
  barrier = forked.server().Barrier(2)
  files = [tmp_path / 'a', tmp_path / 'b']
  two = [buckets.fork(_take_in_a_bucket, barrier, x) for x in files]
  for process in two:
    process.join(120)
    assert process.exitcode == 0
  loser, winner = sorted((x.read_text() for x in files), key='has it'.__eq__)
  assert winner == 'has it'
  assert re.search(r'^process \d+ on .*, started ', loser), loser


def test_it_is_given_back(path, take):
  ownership = take()
  assert _live_owner.read(path).pid > 0
  ownership.check()
  ownership.release()
  ownership.release()
  assert not list(path.parent.iterdir())


def test_a_live_process_of_this_machine_has_it(path, take, process):
  _write(
      path, pid=process.pid, born=_processes.started(process.pid), host='here'
  )
  with pytest.raises(
      _live_owner.OwnedError,
      match=rf'process {process.pid} on here, started 20',
  ):
    take()


@pytest.mark.parametrize('is_reused', [True, False])
def test_a_dead_one_is_taken_over_at_once(path, take, process, is_reused):
  """Also if its number is another process's by now."""
  born = _processes.started(process.pid)
  if is_reused:
    born += '0'
  else:
    process.kill()
    process.wait()
  _write(path, pid=process.pid, born=born)
  start = time.monotonic()
  take(patience_seconds=60).check()
  assert time.monotonic() - start < 10


def test_one_of_another_machine_lives_if_its_beat_changes(path, take):
  owner = _write(path, machine='other')
  beat = threading.Timer(
      0.15, _live_owner._write, [path, dataclasses.replace(owner, beat=1)]
  )
  beat.start()
  told = []
  with pytest.raises(_live_owner.OwnedError, match='on '):
    take(patience_seconds=30, on_wait=told.append)
  beat.join()
  assert 'waiting up to 30 s' in told[0]


@pytest.mark.parametrize('ends', [True, False])
def test_one_of_another_machine_is_watched_before_it_is_taken_over(
    path, take, ends
):
  """By our clock alone: what that machine takes for the time is not asked."""
  _write(path, machine='other', started='2999-01-01 00:00:00 UTC')
  # Once it is seen, it ends, or nothing happens to it.
  start = time.monotonic()
  take(
      patience_seconds=8 if ends else 0.4,
      on_wait=lambda _: ends and path.unlink(),
  ).check()
  took = time.monotonic() - start
  assert took < 8 and (ends or took > 0.4)


def test_what_this_process_left_is_taken_over(path, take):
  """As a run in a notebook that failed; and what it was writing."""
  _write(path)
  half = path.with_name(f'.{path.name}.other')
  half.write_text('{')
  take(patience_seconds=60).check()
  assert not half.exists()


def test_what_no_process_wrote_is_taken_over(path, take):
  path.write_text('{"key": ')
  take().check()


def test_the_beat_changes_and_a_process_that_lost_it_says_so(path, take):
  ownership = take()
  first = _live_owner.read(path)
  deadline = time.monotonic() + 30
  while _live_owner.read(path).beat <= first.beat + 1:
    assert time.monotonic() < deadline
    time.sleep(0.01)
  other = _write(path, pid=1, host='there')
  with pytest.raises(_live_owner.OwnedError, match='process 1 on there'):
    ownership.check()
  ownership.release()
  assert _live_owner.read(path) == other  # It is not ours to remove.
  ownership._thread.join(30)
  assert not ownership._thread.is_alive()


def test_a_storage_that_fails_for_a_moment_loses_nothing(path, take):
  ownership = take()
  path.unlink()
  path.mkdir()  # No file can be written there.
  time.sleep(0.2)
  ownership.check()
  path.rmdir()
  deadline = time.monotonic() + 30
  while _live_owner.read(path) is None:
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_a_fork_gives_nothing_back(path, take):
  ownership = take(beat_seconds=60)
  ownership._pid += 1
  ownership.release()
  assert path.exists()
  ownership._pid -= 1
