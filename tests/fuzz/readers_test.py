"""Damaged files: the same bits, or an error with the path; never anything else.

`GEMMA4_LORA_FUZZ=10000` runs as many cases; so does `python -m tests.fuzz 10000`,
which also outlives a case that ends its process.
"""

import os

import numpy as np
import pytest

from tests.lib import fuzzed_readers

_COUNT = int(os.environ.get('GEMMA4_LORA_FUZZ', '300'))


def test_no_damage_is_silent_and_no_error_is_bare(tmp_path):
  cases = fuzzed_readers.Cases(tmp_path)
  found = [cases.run(number) for number in range(_COUNT)]
  faults = [x for x in found if x.kind in fuzzed_readers.FAULTS]
  assert not faults
  kinds = [x.kind for x in found]
  assert kinds.count('refused') > _COUNT / 2 and kinds.count('same') > 9


@pytest.mark.parametrize(
    ('read', 'kind'),
    [
        (lambda folder: {'x': np.zeros(3)}, 'silent'),
        (lambda folder: {}['x'], 'bare'),
        (lambda folder: int('without a path'), 'bare'),
        (lambda folder: (folder / 'missing').read_text(), 'refused'),
        (lambda folder: {'x': np.ones(3)}, 'same'),
        (lambda folder: {'x': np.ones(4)}, 'other'),
    ],
)
def test_faults_are_seen(read, kind, tmp_path):
  reader = fuzzed_readers.Reader(make=lambda folder: None, read=read)
  cases = fuzzed_readers.Cases(tmp_path)
  want = {'x': np.ones(3)}
  assert cases._verdict(reader, tmp_path, want)[0] == kind
