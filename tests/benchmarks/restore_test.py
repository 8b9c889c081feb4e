"""The benchmark runs; its numbers are not what tests are for."""

from tests.benchmarks import restore


def test_it_measures_a_process_from_outside(tmp_path):
  """A checkpoint of a tiny model, written and restored by processes."""
  assert restore.measure('write', tmp_path, scale=0).peak_gb > 0.1
  assert (tmp_path / 'orbax').exists() and (tmp_path / 'safetensors').exists()
  measured = restore.measure('init_safetensors', tmp_path, scale=0, devices=8)
  assert measured.seconds > 0
