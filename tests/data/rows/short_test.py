"""Tests of values in messages."""

import time

import pytest

from gemma4_lora.data.rows import _short


def _deep(depth):
  value = []
  for _ in range(depth):
    value = {'a': [value]}
  return value


@pytest.mark.parametrize(
    'value', [{'b': 1, 'a': [None, 'x', b'y', (1, 2.5)]}, [], {}, 'é\n', None]
)
def test_small_values_are_shown_as_repr_shows_them(value):
  assert _short.short(value) == repr(value)


def test_lone_surrogates_and_escapes_cannot_reach_a_terminal():
  assert _short.short('\ud800\x1b[31m') == r"'\ud800\x1b[31m'"


def test_integers_that_python_does_not_print():
  assert _short.short({'a': [10**5000]}) == "{'a': [<int of 16610 bits>]}"


@pytest.mark.parametrize(
    'value',
    [
        'a' * 50_000_000,
        b'a' * 50_000_000,
        {'a': ['b' * 5_000_000] * 20},
        {str(i): i for i in range(200_000)},
        _deep(100_000),
    ],
    ids=['text', 'bytes', 'texts', 'dict', 'deep'],
)
def test_large_and_deep_values_are_cut_in_no_time(value):
  begin = time.process_time()
  text = _short.short(value, 80)
  assert time.process_time() - begin < 1
  assert len(text) <= 80 and '...' in text
