"""The benchmark runs; its numbers are not what tests are for."""

import sys

import pytest

from tests.benchmarks import restore


@pytest.fixture(name='folder', scope='module')
def _folder(tmp_path_factory):
  """A checkpoint of a tiny model, in both formats."""
  folder = tmp_path_factory.mktemp('restore')
  restore.write(folder, scale=0)
  return folder


@pytest.mark.parametrize('task', ['orbax', 'disk', 'init_safetensors'])
def test_each_way_reads_it(task, folder):
  restore._TASKS[task](folder, 0)


_PROCESS = """
x = b'x' * 300_000_000
print('a line of some library')
print('SECONDS', 0.5)
"""


def test_it_measures_a_process_from_outside():
  measured = restore.measure_process([sys.executable, '-c', _PROCESS])
  assert measured.seconds == 0.5
  assert measured.peak_gb > 0.3  # Linux counts what its parent had, too.
  with pytest.raises(RuntimeError, match='failed:(?s:.*)no such thing'):
    code = 'raise ValueError("no such thing")'
    restore.measure_process([sys.executable, '-c', code])
