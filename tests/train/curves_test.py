"""Curves of a run that was interrupted, from what TensorBoard reads."""

from gemma4_lora import g4


def _write(workdir, collection, losses):
  writer = g4.train.TerminalWriter(workdir=workdir, collection=collection)
  for step, loss in losses.items():
    writer.write_scalars(step, {'losses/xentropy': loss})
  writer.write_texts(0, {'config': 'of the run'})
  writer.flush()


def test_a_resumed_run_has_one_curve(tmp_path):
  """A step that was trained twice counts once, with its last value."""
  _write(tmp_path, 'train', {0: 4.0, 10: 3.0})
  _write(tmp_path, 'train', {10: 2.5, 20: 2.0})
  _write(tmp_path, 'eval', {20: 2.25})
  assert g4.train.curves(tmp_path) == {
      'train': {'losses/xentropy': {0: 4.0, 10: 2.5, 20: 2.0}},
      'eval': {'losses/xentropy': {20: 2.25}},
  }


def test_files_of_one_second_are_read_in_their_order(tmp_path):
  """Their count has no leading zeros."""
  for count, loss in (('9', 3.0), ('10', 2.0)):
    _write(tmp_path, 'train', {0: loss})
    new = max(
        (tmp_path / 'train').iterdir(), key=lambda x: x.stat().st_mtime_ns
    )
    new.rename(new.with_name(f'events.out.tfevents.1796119446.vm.7.{count}.v2'))
  assert g4.train.curves(tmp_path)['train']['losses/xentropy'] == {0: 2.0}


def test_a_file_that_was_cut_off_counts_up_to_there(tmp_path):
  _write(tmp_path, 'train', {0: 4.0, 10: 3.0})
  (path,) = tmp_path.glob('train/*')
  path.write_bytes(path.read_bytes()[:-5])
  assert g4.train.curves(tmp_path)['train']['losses/xentropy'][0] == 4.0


def test_there_is_none_before_the_first_step(tmp_path):
  assert g4.train.curves(tmp_path / 'run') == {}
