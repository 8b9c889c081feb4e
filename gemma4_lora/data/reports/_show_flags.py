"""Flags of the command `show`."""

from typing import Any

from absl import app
from absl import flags

_ALL = 'all'

_ROWS = flags.DEFINE_integer(
    'rows', 5, 'show: rows to show, of each dataset.', lower_bound=0
)
_MALFORMED = flags.DEFINE_bool(
    'malformed', False, 'show: malformed rows, in place of others, by reason.'
)
_COUNT = flags.DEFINE_string(
    'count', '10000', 'show: rows to count, evenly spread; "all" for all.'
)
_DATASET = flags.DEFINE_string(
    'dataset', 'train_ds', 'show: which of the config, as in evals.eval.ds.'
)


def arguments() -> dict[str, Any]:
  """Returns what the flags say, as arguments of `_show_command.run`."""
  count = _COUNT.value
  if count != _ALL and not (count.isdecimal() and int(count)):
    raise app.UsageError(
        f'show --count takes a number of rows, or {_ALL!r}. Got: {count!r}.'
    )
  return {
      'dataset': _DATASET.value,
      'num_shown': _ROWS.value,
      'count': None if count == _ALL else int(count),
      'show_malformed': _MALFORMED.value,
  }
