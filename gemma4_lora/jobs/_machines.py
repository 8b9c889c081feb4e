"""The machines of Vertex AI for a slice of TPU chips.

Sources, read on 2026-11-21: for v5e and v6e, the tables of "Configure compute
resources", https://cloud.google.com/vertex-ai/docs/training/configure-compute#tpu;
for v5p, which those tables leave out, GKE's, from which Vertex takes its names of
topologies, https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.

For TPU7x (Ironwood), read on 2026-11-30: machines of four chips by
https://docs.cloud.google.com/kubernetes-engine/docs/concepts/tpu-ironwood, which
says that GKE takes no `--tpu-topology` for several hosts of it. Its shapes here
are those of v5p: libtpu 0.0.50 makes a topology of each, with four chips on a host.
"""

import dataclasses
import difflib
import math

from gemma4_lora.jobs.command_line import _allowed

_CUBES = (
    '2x2x1',
    '2x2x2',
    '2x2x4',
    '2x4x4',
    '4x4x4',
    '4x4x8',
    '4x8x8',
    '8x8x8',
)
_FOUR_CHIPS = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
# Machines with all chips on one host come first.
_MACHINES = {
    'v5e': {
        'ct5lp-hightpu-1t': ('1x1',),
        'ct5lp-hightpu-8t': ('2x4',),
        'ct5lp-hightpu-4t': _FOUR_CHIPS,
    },
    'v5p': {'ct5p-hightpu-4t': _CUBES},
    'v6e': {
        'ct6e-standard-1t': ('1x1',),
        'ct6e-standard-8t': ('2x4',),
        'ct6e-standard-4t': _FOUR_CHIPS,
    },
    'tpu7x': {'tpu7x-standard-4t': _CUBES},
}
_LISTED_BY_VERTEX = ('v5e', 'v6e')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
  """Chips that are wired together, and the machines that they are in.

  Attributes:
    chip: `'v6e'`.
    shape: `'2x4'`, as Vertex takes it for `tpuTopology`.
    machine_type: `'ct6e-standard-8t'`.
  """

  chip: str
  shape: str
  machine_type: str

  @property
  def topology(self) -> str:
    """As the planner takes it: `'v6e:2x4'`."""
    return f'{self.chip}:{self.shape}'

  @property
  def num_chips(self) -> int:
    return math.prod(map(int, self.shape.split('x')))

  @property
  def num_hosts(self) -> int:
    return self.num_chips // _chips_of(self.machine_type)

  @property
  def is_listed(self) -> bool:
    """Whether Vertex's own page of machines for training has it."""
    return self.chip in _LISTED_BY_VERTEX


def slice_of(topology: str, *, machine_type: str | None = None) -> Slice:
  """Returns the machines of a topology.

  Args:
    topology: `'v6e:1x1'`, `'v6e:4x4'`, `'v5p:2x2x1'`, `'tpu7x:2x2x1'`.
    machine_type: One of several possible machines; default: one host if one has
      all chips (`2x4` is one `-8t` or two `-4t`).

  Raises:
    ValueError: Vertex has no such slice, or not of these machines.
  """
  chip, _, shape = topology.partition(':')
  if chip not in _MACHINES:
    raise ValueError(
        f'--topology={_allowed.shown(topology)}: Vertex has no such chip.'
        f' {_hint(topology, _all_topologies())}Known: {_known()}.'
    )
  machines = [name for name, has in _MACHINES[chip].items() if shape in has]
  if not machines:
    raise ValueError(
        f'--topology={_allowed.shown(topology)}: Vertex has no such slice.'
        f' {_hint(topology, _all_topologies())}Known: {_known()}.'
    )
  if machine_type is not None and machine_type not in machines:
    raise ValueError(
        f'--machine_type={_allowed.shown(machine_type)} does not make up'
        f' --topology={topology}. These do: {", ".join(machines)}.'
    )
  return Slice(chip=chip, shape=shape, machine_type=machine_type or machines[0])


def _chips_of(machine_type: str) -> int:
  return int(machine_type.rpartition('-')[2].removesuffix('t'))


def _all_topologies() -> list[str]:
  return [
      f'{chip}:{shape}'
      for chip, machines in _MACHINES.items()
      for shape in dict.fromkeys(s for has in machines.values() for s in has)
  ]


def _known() -> str:
  return ', '.join(_all_topologies())


def _hint(name: str, known: list[str]) -> str:
  close = difflib.get_close_matches(name, known, n=1)
  return f'Did you mean {close[0]}? ' if close else ''
