"""Rows by chance: trained as they say, or malformed with a reason.

`python -m tests.data.rules.random_rows_test 10000` tries as many of each kind.
"""

import collections
import dataclasses
import random
import sys

from absl import logging
import numpy as np

from gemma4_lora import g4
from tests.lib import random_rows

_TOKENIZER = g4.testing.Gemma4Tokenizer()
# Reasons that name a type of Python's errors were not foreseen.
_UNFORESEEN = ('TypeError', 'AttributeError', 'IndexError', 'KeyError')


def _task(case):
  return g4.data.ChatTask(
      **case.task, tokenizer=_TOKENIZER, max_length=2048, max_malformed=1
  )


def _reason(task):
  assert task.malformed.num_malformed == 1
  ((reason, _),) = task.malformed.reasons.items()
  assert reason and not reason.startswith(_UNFORESEEN), reason
  return reason


def _check(number, seed):
  rng = random.Random(seed)
  reasons = collections.Counter()
  for _ in range(number):
    case = random_rows.valid(rng)
    task = _task(case)
    rendered = task.render(case.row)
    assert rendered.text == case.text
    assert rendered.trained == case.trained
    example = task.map(case.row)
    trained = example['target'][example['loss_mask']]
    assert _TOKENIZER.decode(trained) == case.trained

    thinking = rng.choice(['keep', 'strip', 'strip_all', 'mask', 'empty'])
    other = dataclasses.replace(
        task, template='transformers', thinking=thinking
    )
    assert np.any(other.map(case.row)['loss_mask'])

    case = random_rows.damaged(rng)
    task = _task(case)
    assert task.map(case.row) is None, (case.damage, case.row)
    reasons[case.damage, _reason(task)] += 1

    case = random_rows.mutated(rng)
    task = _task(case)
    example = task.map(case.row)
    if example is None:
      reasons['mutated', _reason(task)] += 1
    else:
      assert np.any(example['loss_mask'])
      assert task.malformed.num_malformed == 0
  return reasons


def test_rows_by_chance_are_trained_as_they_say_or_malformed(caplog):
  caplog.set_level('ERROR', logger='absl')
  reasons = _check(150, seed=0)
  assert len(reasons) > 50


if __name__ == '__main__':
  logging.set_verbosity(logging.ERROR)
  for (damage, why), count in sorted(_check(int(sys.argv[1]), seed=1).items()):
    print(count, damage, '|', why)
