"""Types of option values."""

import click
import pytest

from gemma4_lora.commands import _values


@pytest.mark.parametrize(
    'path', [None, '', 'gs://b/x', 'gs:/b/x', '{tmp_path}', '~']
)
def test_what_is_there_or_is_in_no_place_here(path, tmp_path):
  path = path and path.replace('{tmp_path}', str(tmp_path))
  _values.check_there('--peft', path)


def test_what_is_not_there(tmp_path):
  with pytest.raises(click.UsageError, match='--peft=.*no: there is no such'):
    _values.check_there('--peft', f'{tmp_path}/no')
