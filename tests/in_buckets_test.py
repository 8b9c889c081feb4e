"""Every public function and command, from buckets into buckets.

What they check is in `lib/in_buckets.py`, which one process runs.
"""

import json
import os

import pytest

from tests.lib import buckets as buckets_lib
from tests.lib import in_buckets


@pytest.fixture(scope='module', name='said')
def _said(tmp_path_factory):
  """What each check had to say: nothing if all is well."""
  if reason := buckets_lib.why_not():
    pytest.skip(reason)
  folder = tmp_path_factory.mktemp('in_buckets')
  with buckets_lib.serve(folder / 'cloud') as buckets:
    buckets.call(
        in_buckets.run,
        *(buckets, folder / 'said.json'),
        env={'TMPDIR': os.fspath(folder)},
        timeout=600,
    )
  # Nothing is left of what was put together before it was uploaded.
  assert not list(folder.glob('.*.tmp'))
  return json.loads((folder / 'said.json').read_text())


@pytest.mark.parametrize('name', in_buckets.NAMES)
def test_in_buckets(said, name):
  assert not said.get(name, 'did not run'), said[name]
