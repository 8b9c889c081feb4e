"""Killed at any moment, a writer leaves what was there, or what is new.

20 kills; more by `GEMMA4_LORA_KILLS=200 pytest tests/kills_test.py`.
"""

import os

import pytest

from tests.lib import forked
from tests.lib import killed

_COUNT = int(os.environ.get('GEMMA4_LORA_KILLS', '20'))
_TIMEOUT_S = 300


@pytest.fixture(scope='module', name='prepared')
def _prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp('killed')
  killed.prepare(folder)
  return folder


@pytest.mark.parametrize('kind', killed.KINDS)
def test_what_is_there_is_whole(kind, prepared):
  """And the next start goes on, and removes what the killed one left."""
  folder = prepared / kind
  folder.mkdir()
  for name in ('released', 'run'):
    (folder / name).symlink_to(prepared / name)
  _, read = killed.KINDS[kind]
  last = 0
  for seed in range(-(-_COUNT // len(killed.KINDS))):
    told, exitcode = _work(kind, folder, seed)
    assert exitcode == -9
    found = read(folder)
    if found is not None:
      assert told[-1] <= found <= told[-1] + 1
      assert told[0] == last + 1  # It went on from what was there.
      last = found
  _, exitcode = _work(kind, folder, None)
  assert exitcode == 0
  assert not killed.leftovers(folder)
  read(folder)


def _work(kind, folder, seed):
  """Returns which rounds a process said to be on disk, and its exit code."""
  context = forked.server()
  here, there = context.Pipe(duplex=False)
  process = context.Process(
      target=killed.work, args=(kind, folder, seed, there)
  )
  process.start()
  there.close()
  told = []
  try:
    while here.poll(_TIMEOUT_S):
      told.append(here.recv())
  except EOFError:
    pass
  process.join(_TIMEOUT_S)
  return told, process.exitcode
