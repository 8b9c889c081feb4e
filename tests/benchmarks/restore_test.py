"""The benchmark runs; its numbers are not what tests are for."""

from tests.benchmarks import restore


def test_it_measures_a_process_from_outside(tmp_path):
  """A checkpoint of a tiny model, in both formats, restored by a process."""
  restore.write(tmp_path, scale=0)
  assert (tmp_path / 'orbax').exists()
  measured = restore.measure('init_safetensors', tmp_path, scale=0, devices=8)
  assert measured.seconds > 0
  assert measured.peak_gb > 0.1
