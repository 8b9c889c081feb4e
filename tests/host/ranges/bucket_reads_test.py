"""For how long reads of a bucket are tried again.

What comes of it: `tests/lib/in_buckets.py`.
"""

from etils import epath
import pytest

from gemma4_lora.host.ranges import _bucket_reads

_NAME = 'GEMMA4_LORA_BUCKET_TIMEOUT'


@pytest.mark.parametrize(
    ('seconds', 'count'), [('0.1', 1), ('2', 2), ('', 7), ('600', 41)]
)
def test_tensorstore_tries_for_so_long(monkeypatch, seconds, count):
  """0.5, 1, 2, 4, 8, 16, 16 … s."""
  monkeypatch.setenv(_NAME, seconds)
  spec = _bucket_reads.kvstore(epath.Path('gs://bucket/a/file'))
  assert spec is not None
  assert (spec['bucket'], spec['path']) == ('bucket', 'a/file')
  assert spec['gcs_request_retries']['max_retries'] == count


@pytest.mark.parametrize('seconds', ['soon', '0', '-1', 'nan', 'inf'])
def test_what_is_no_number_of_seconds(monkeypatch, seconds):
  monkeypatch.setenv(_NAME, seconds)
  with pytest.raises(
      ValueError, match=f"{_NAME}='{seconds}': give the seconds"
  ):
    _bucket_reads.timeout_s()
