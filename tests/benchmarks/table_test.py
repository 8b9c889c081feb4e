"""The benchmarks measure what they say; what they find is not for tests."""

import dataclasses
import pathlib
import re
import sys

from gemma import gm
from gemma import peft
import jax
import numpy as np
import pytest

from gemma4_lora import targets
from tests.benchmarks import __main__ as main
from tests.benchmarks import gpu
from tests.benchmarks import pipelines
from tests.benchmarks import sizes
from tests.benchmarks import steps
from tests.benchmarks import worker

_TARGETS = pathlib.Path(targets.__file__).parent / 'README.md'
_NAMES = ('ours', 'by_hand', 'kauldron')


class _Here(worker.Functions):
  """A worker in this process: importing gemma again takes 10 s."""

  def ask(self, what, **arguments):
    return getattr(self, what)(**arguments)


@pytest.fixture(scope='module', name='workers')
def _workers():
  return {name: _Here(name, sizes.TINY.to_json()) for name in _NAMES}


@pytest.fixture(scope='module', name='table')
def _table(workers):
  table = main.Table(_NAMES, rounds=2)
  main._steps(table, workers)
  return table


def test_all_ways_take_the_same_steps(table, workers):
  """From the same parameters, on the same batch: the loss of each."""
  del table  # Five steps were taken.
  losses = {name: made.run(1)['loss'] for name, made in workers.items()}
  for loss in losses.values():
    np.testing.assert_allclose(loss, losses['ours'], rtol=1e-4)
  assert losses['ours'] < np.log(sizes.TINY.vocabulary)  # It learns.


def test_the_table_has_a_column_for_each(table):
  by_name = {row.name: row for row in table.rows}
  assert by_name['float operations, G'].values.keys() == set(_NAMES)
  for name, row in by_name.items():
    if name == 'temporaries, MB: resident':
      continue  # After other tests, this process has memory to spare.
    assert row.ratio('ours') == 1
    assert all(x > 0 for values in row.values.values() for x in values)
  lines = str(table).splitlines()
  assert lines[0] == '| | ours | by hand | Kauldron | gemma HEAD | PEFT |'
  assert {line.count('|') for line in lines} == {7}
  assert lines[2].startswith('| step, s |')
  assert lines[2].endswith('| not measured | not measured |')


def test_ratios_are_medians_over_rounds():
  row = main.Row(name='x', values={'ours': [1.0, 2.0, 9.0], 'peft': [2, 6, 9]})
  assert row.ratio('peft') == 2
  assert row.cell('ours') == '2'
  assert row.cell('peft') == '6 (2.00)'
  assert row.cell('by_hand') == 'not measured'


def test_restoring_and_saving(workers, tmp_path):
  released, run = str(tmp_path / 'released'), str(tmp_path / 'run')
  workers['ours'].write(released)
  got = workers['ours'].start(released, run)
  assert min(got.values()) > 0
  assert (tmp_path / 'run' / 'checkpoints' / 'ckpt_1').is_dir()
  assert got['checkpoint_mb'] == worker.size_mb(run)
  # A, B and Adam's two of each, in float32: random, they hardly compress.
  params = steps.make('ours', sizes.TINY).params
  lora = jax.tree.leaves(peft.split_params(params).lora)
  assert 1e6 * got['checkpoint_mb'] > 0.7 * 12 * sum(x.size for x in lora)
  assert workers['by_hand'].start(released, run)['restore_s'] > 0


@pytest.mark.parametrize('name', ['ours', 'kauldron'])
def test_batches_of_chats(name, workers):
  batch = next(pipelines.make(name))
  assert batch['input'].shape == (32, 128)
  assert batch['loss_mask'].any() and not batch['loss_mask'].all()
  assert workers[name].data(1)['examples_per_s'] > 0


def test_e2b_is_gemmas():
  config = sizes.E2B.model().config
  want = gm.nn.Gemma4_E2B.config
  for field in dataclasses.fields(want):
    if field.name not in ('vision_encoder', 'audio_encoder'):
      assert getattr(config, field.name) == getattr(want, field.name), field


def test_model_flops_are_a_little_less_than_xla_counts():
  """By the row of a README, which has masked scores, norms and dead keys too."""
  text = _TARGETS.read_text(encoding='utf-8')
  counted = re.search(r"^\| `'text'` \| ([\d.]+) G \|", text, re.M)
  assert counted
  ratio = sizes.E2B.model_flops / (1e9 * float(counted[1]))
  assert 0.95 < ratio < 1.0


def test_a_row_of_the_gpu_table_on_the_cpu(workers, table):
  """Whose memory jax does not count, and whose rate nobody publishes."""
  del table  # Compiled.
  row = gpu.row(sizes.TINY, 'by hand', workers['by_hand'])
  assert re.fullmatch(r'\| 1 x 16 \| by hand \| [\d,]+ \| – \| – \|', row)
  assert gpu.HEADER.splitlines()[0].count('|') == row.count('|')


def test_utilisation_of_a_known_gpu():
  seconds = sizes.E2B.model_flops / 989e12
  assert gpu.utilisation(sizes.E2B, 2 * seconds, 'NVIDIA H200') == 0.5


@dataclasses.dataclass(frozen=True)
class _Fails:
  message: str

  def ask(self, what, **arguments):
    raise RuntimeError(self.message)


def test_what_does_not_fit_keeps_its_row():
  made = _Fails('RESOURCE_EXHAUSTED: Out of memory')
  row = gpu.row(sizes.TINY, 'ours', made)
  assert row == '| 1 x 16 | ours | out of memory | – | – |'
  with pytest.raises(RuntimeError, match='no such option'):
    gpu.row(sizes.TINY, 'ours', _Fails('no such option'))


_ANSWERS = """
from tests.benchmarks import worker
class Functions:
  def add(self, x, y):
    print('a line of some library')
    return {'sum': x + y, **worker.memory_mb()}
worker.answer(Functions())
"""


def test_a_worker_answers_and_says_why_it_does_not():
  made = worker.Worker([sys.executable, '-c', _ANSWERS])
  got = made.ask('add', x=2, y=3)
  assert got['sum'] == 5
  assert 1 < got['now'] <= got['peak'] < 1000
  with pytest.raises(RuntimeError, match="'add':\n(?s:.*)unsupported operand"):
    made.ask('add', x=2, y='3')
  made.close()


def test_where_the_others_are(tmp_path):
  """A checkout, or a Python."""
  tiny = sizes.TINY
  python, *_ = main.command('gemma_head', tiny, {'gemma_head': '/a/python'})
  assert python == '/a/python'
  here = {'gemma_head': str(tmp_path)}
  assert main.command('gemma_head', tiny, here)[0] == sys.executable
  python, script, size = main.command('peft', tiny, {'peft': '/a/python'})
  assert python == '/a/python' and pathlib.Path(script).is_file()
  assert sizes.from_json(size) == tiny
