"""Which machines make up a slice."""

import re

import pytest

from gemma4_lora.jobs import _machines

# https://cloud.google.com/vertex-ai/docs/training/configure-compute#tpu, and for
# v5p https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus; for TPU7x
# see `_machines`: topology, machine type, chips, VMs.
_TABLE = """
v5e:1x1   ct5lp-hightpu-1t 1   1
v5e:2x2   ct5lp-hightpu-4t 4   1
v5e:2x4   ct5lp-hightpu-8t 8   1
v5e:2x4   ct5lp-hightpu-4t 8   2
v5e:4x4   ct5lp-hightpu-4t 16  4
v5e:4x8   ct5lp-hightpu-4t 32  8
v5e:8x8   ct5lp-hightpu-4t 64  16
v5e:8x16  ct5lp-hightpu-4t 128 32
v5e:16x16 ct5lp-hightpu-4t 256 64
v6e:1x1   ct6e-standard-1t 1   1
v6e:2x4   ct6e-standard-8t 8   1
v6e:2x2   ct6e-standard-4t 4   1
v6e:2x4   ct6e-standard-4t 8   2
v6e:4x4   ct6e-standard-4t 16  4
v6e:4x8   ct6e-standard-4t 32  8
v6e:8x8   ct6e-standard-4t 64  16
v6e:8x16  ct6e-standard-4t 128 32
v6e:16x16 ct6e-standard-4t 256 64
v5p:2x2x1 ct5p-hightpu-4t  4   1
v5p:2x2x2 ct5p-hightpu-4t  8   2
v5p:2x2x4 ct5p-hightpu-4t  16  4
v5p:2x4x4 ct5p-hightpu-4t  32  8
v5p:4x4x4 ct5p-hightpu-4t  64  16
tpu7x:2x2x1 tpu7x-standard-4t 4   1
tpu7x:2x2x2 tpu7x-standard-4t 8   2
tpu7x:8x8x8 tpu7x-standard-4t 512 128
"""
_ROWS = [line.split() for line in _TABLE.strip().splitlines()]


@pytest.mark.parametrize(('topology', 'machine', 'chips', 'hosts'), _ROWS)
def test_the_table_of_google_cloud(topology, machine, chips, hosts):
  tpu = _machines.slice_of(topology, machine_type=machine)
  assert tpu.topology == topology
  assert (tpu.num_chips, tpu.num_hosts) == (int(chips), int(hosts))
  assert tpu.is_listed != topology.startswith(('v5p', 'tpu7x'))


def test_one_host_where_one_has_all_chips():
  assert _machines.slice_of('v6e:2x4').machine_type == 'ct6e-standard-8t'
  assert _machines.slice_of('v5e:2x4').num_hosts == 1


@pytest.mark.parametrize(
    ('topology', 'says'),
    [
        ('v7:1x1', 'no such chip'),
        ('v6e', 'no such slice. Did you mean v6e:'),
        ('v6e:3x3', 'no such slice. Did you mean v6e:'),
        (
            'v6e-8',
            '--topology=v6e-8: Vertex has no such chip. Did you mean v6e:',
        ),
        ('v5p:4x4', 'Did you mean v5p:4x4x'),
        ('cpu:8', 'no such chip'),
    ],
)
def test_an_unknown_topology_lists_those_that_are(topology, says):
  known = r'Known: v5e:1x1, v5e:2x4, v5e:2x2, .*v5p:2x2x1, .*v6e:16x16, tpu7x:2x2x1, .*tpu7x:8x8x8\.'
  with pytest.raises(ValueError, match=f'{re.escape(says)}.*{known}'):
    _machines.slice_of(topology)


def test_machines_of_another_slice():
  says = r'These do: ct6e-standard-8t, ct6e-standard-4t\.'
  with pytest.raises(ValueError, match=says):
    _machines.slice_of('v6e:2x4', machine_type='ct6e-standard-1t')
