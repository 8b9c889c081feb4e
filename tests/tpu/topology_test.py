"""Names of topologies, and what is said of wrong ones."""

import os
import subprocess
import sys

import jax
import pytest

from gemma4_lora import g4
from gemma4_lora.tpu import _chips
from gemma4_lora.tpu import _topology


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        (
            'v9:1x1',
            'no such chip is known here.*v5p, v6e, tpu7x.*Examples: v6e:1x1',
        ),
        ('v6:2x4', "Did you mean 'v6e'"),
        ('v7x:2x2x1', "Did you mean 'tpu7x'"),
        ('Ironwood:2x2x1', "Did you mean 'tpu7x'"),
        ('TPU7x:2x2x1', "Did you mean 'tpu7x'"),
        ('v6e', 'lacks how many chips, as in v6e:1x1 for one'),
        ('v6e 2x4', 'is not a topology. Examples: v6e:1x1'),
        ('v6e:', 'is not a topology'),
        ('cpu:2x2', 'such as cpu:8'),
        ('cpu:9', 'jax has 8 of them here. .*jax_num_cpu_devices'),
        ('cpu:0', 'jax has 8 of them here'),
    ],
)
def test_what_is_no_topology(name, message):
  with pytest.raises(g4.tpu.PlanError, match=message):
    _topology.topology(name)


def test_no_gpu_here():
  try:
    jax.devices('gpu')
  except RuntimeError:
    with pytest.raises(g4.tpu.PlanError, match='jax has no gpu'):
      _topology.topology('gpu')
  else:
    assert _topology.topology('gpu').devices


@pytest.mark.parametrize(('name', 'number'), [('cpu', 8), ('cpu:3', 3)])
def test_cpu_is_what_is_here(name, number):
  topology = _topology.topology(name)
  assert len(topology.devices) == number
  total = topology.chip.hbm_bytes * number
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  assert memory - number <= total <= memory


@pytest.mark.parametrize(
    ('name', 'number', 'kind'),
    [
        ('v6e:1x1', 1, 'TPU v6 lite'),
        ('v6e:2x4', 8, 'TPU v6 lite'),
        ('v5e:4x4', 16, 'TPU v5 lite'),
        ('v5p:2x2x1', 4, 'TPU v5'),
        ('tpu7x:2x2x1', 8, 'TPU7x'),  # Two to a chip.
    ],
)
def test_tpus_that_are_not_here(name, number, kind):
  pytest.importorskip('libtpu')
  before = dict(os.environ)
  topology = _topology.topology(name)
  assert dict(os.environ) == before
  assert len(topology.devices) == number
  assert {x.device_kind for x in topology.devices} == {kind}
  assert topology.chip.name == name.partition(':')[0]


def test_a_shape_that_no_slice_has():
  pytest.importorskip('libtpu')
  with pytest.raises(g4.tpu.PlanError, match='knows no such .*libtpu says'):
    _topology.topology('v6e:3x3')


def _in_new_process(code, **environment):
  inherited = {k: v for k, v in os.environ.items() if k != 'TPU_LIBRARY_PATH'}
  return subprocess.run(
      [sys.executable, '-c', code],
      env=inherited | {'JAX_PLATFORMS': 'cpu'} | environment,
      capture_output=True,
      text=True,
      check=False,
  ).stderr


# That module alone: the folder's others import Kauldron and gemma, which takes
# longer than all of this.
_LOAD = """
import sys
import types
import gemma4_lora
folder = types.ModuleType('gemma4_lora.tpu')
folder.__path__ = [gemma4_lora.__path__[0] + '/tpu']
sys.modules['gemma4_lora.tpu'] = folder
from gemma4_lora.tpu import _topology
_topology.topology('v6e:1x1')
"""


def test_without_libtpu():
  code = 'import sys; sys.modules["libtpu"] = None' + _LOAD
  assert 'pip install "gemma4_lora[tpu]"' in _in_new_process(code)


@pytest.mark.parametrize(
    'message',
    [
        # libtpu's own, with a lock on its file, and without a way to one.
        'ABORTED: The TPU is already in use by process with pid 7.',
        'ABORTED: Internal error when accessing libtpu multi-process lockfile.'
        ' Run "$ sudo rm /tmp/libtpu_lockfile".',
    ],
)
def test_while_another_process_holds_libtpu(message):
  """Not by two processes: who ends first takes the other's lock away."""
  why = _topology._why('v6e:1x1', message)
  assert 'another process on this machine holds libtpu' in why
  assert message in why


@pytest.mark.parametrize('chip', _chips.TPUS.values(), ids=lambda x: x.name)
def test_each_chip_says_who_says_so(chip):
  assert chip.source.startswith('https://docs.cloud.google.com/tpu/docs/')
  rates = (chip.flops_per_s, chip.hbm_bytes_per_s, chip.ici_bytes_per_s)
  # Compute is faster than memory, and memory than links.
  assert rates == tuple(sorted(rates, reverse=True))


def test_gpus_by_the_name_that_jax_gives():
  known = _chips.gpu('NVIDIA H200', 150 * 10**9)
  assert (known.flops_per_s, known.hbm_bytes) == (989e12, 150 * 10**9)
  unknown = _chips.gpu('NVIDIA GeForce RTX 4090', None)
  assert unknown.flops_per_s is None
  assert unknown.name == 'NVIDIA GeForce RTX 4090'
