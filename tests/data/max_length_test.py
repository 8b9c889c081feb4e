"""Tests of what fits `max_length`; those of whole tasks are ChatTask's."""

import numpy as np
import pytest

from gemma4_lora.data import _max_length

_IDS = np.arange(8, dtype=np.int32)
_WEIGHTS = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)


def _cut(max_length, *, truncate=True, in_prompt=None):
  return _max_length.cut(
      _IDS,
      _WEIGHTS,
      max_length=max_length,
      truncate=truncate,
      in_prompt=in_prompt,
  )


def test_one_more_than_max_length_fits_as_the_last_is_a_target_only():
  for max_length, fit in ((4, 5), (7, 8), (9, 8)):
    ids, weights = _cut(max_length)
    np.testing.assert_array_equal(ids, _IDS[:fit])
    np.testing.assert_array_equal(weights, _WEIGHTS[:fit])
  with pytest.raises(ValueError, match='has 7 tokens .*max_length=6.'):
    _cut(6, truncate=False)


@pytest.mark.parametrize(
    'in_prompt, advice',
    [
        ('en', r"DropLongPrompts\(in_prompt='en', .*max_length=3\)"),
        # `DropLongPrompts` takes no messages.
        (None, 'set `max_malformed=` to a share of the rows'),
    ],
)
def test_a_cut_response_is_an_error_with_advice_for_the_layout(
    in_prompt, advice
):
  with pytest.raises(ValueError, match=f'prompt 4, response 4.*{advice}'):
    _cut(3, in_prompt=in_prompt)
