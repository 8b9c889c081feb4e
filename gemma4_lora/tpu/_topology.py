"""Names of topologies, and their devices."""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import difflib
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from gemma4_lora.tpu import _chips
from gemma4_lora.tpu import _errors

_EXAMPLES = 'v6e:1x1, v6e:2x4, v5e:4x4, v5p:2x2x1, tpu7x:2x2x1, cpu, cpu:8, gpu'
_LOCAL = ('cpu', 'gpu')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """Devices to compile for.

  Attributes:
    name: `'v6e:2x4'`, `'cpu'`.
    devices: Devices in jax's order.
    chip: Memory and rates of each.
  """

  name: str
  devices: Sequence[jax.Device]
  chip: _chips.Chip


def chip_name(name: str) -> str:
  """Returns the chip of a topology, without loading a compiler.

  Raises:
    PlanError: It is not a topology, or has a chip that we do not know.
  """
  match = re.fullmatch(r'(\w+)(?::(\d+(?:x\d+){0,2}))?', name)
  if match is None:
    raise _errors.PlanError(
        f'topology={name!r} is not a topology. Examples: {_EXAMPLES}.'
    )
  chip, shape = match[1], match[2]
  if chip not in (*_chips.TPUS, *_LOCAL):
    known = [*_chips.TPUS, *_LOCAL]
    called = chip.lower()
    close = difflib.get_close_matches(called, known, n=1)
    if called in _chips.ALIASES:
      close = [_chips.ALIASES[called]]
    hint = f' Did you mean {close[0]!r}?' if close else ''
    raise _errors.PlanError(
        f'topology={name!r}: no such chip is known here.{hint} Chips:'
        f' {", ".join(known)}. Examples: {_EXAMPLES}.'
    )
  if chip not in _LOCAL and shape is None:
    raise _errors.PlanError(
        f'topology={name!r} lacks how many chips, as in v6e:1x1 for one. Examples:'
        f' {_EXAMPLES}.'
    )
  if chip in _LOCAL and shape and 'x' in shape:
    raise _errors.PlanError(
        f'topology={name!r}: a number of devices, such as {chip}:8.'
    )
  return chip


def topology(name: str) -> Topology:
  """Returns the devices of a topology.

  Args:
    name: `'v6e:2x4'`; `'tpu7x:2x2x1'`, of four chips and eight devices; `'cpu'`
      or `'gpu'` for all devices that are here, `'cpu:2'` for two of them.

  Raises:
    PlanError: There is no such topology, or no compiler for it here.
  """
  chip = chip_name(name)
  if chip not in _LOCAL:
    devices = _tpu_devices(name)
    return Topology(name=name, devices=devices, chip=_chips.TPUS[chip])
  devices = _local_devices(chip, name)
  if chip == 'cpu':
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    local = _chips.Chip(
        name='cpu',
        hbm_bytes=memory // len(devices),
        hbm_source=f"this machine's memory, shared by {len(devices)}",
    )
  else:
    stats: Any = devices[0].memory_stats() or {}
    local = _chips.gpu(devices[0].device_kind, stats.get('bytes_limit'))
  return Topology(name=name, devices=devices, chip=local)


def _local_devices(platform: str, name: str) -> Sequence[jax.Device]:
  try:
    devices = jax.devices(platform)
  except RuntimeError as e:
    raise _errors.PlanError(
        f'topology={name!r}: jax has no {platform} on this machine ({e}). TPU'
        f' topologies need none: {_EXAMPLES}.'
    ) from e
  _, _, number = name.partition(':')
  if not number:
    return devices
  if not 0 < int(number) <= len(devices):
    how = (
        " Write jax.config.update('jax_num_cpu_devices', N) before anything"
        ' else uses jax.'
        if platform == 'cpu'
        else ''
    )
    raise _errors.PlanError(
        f'topology={name!r}: jax has {len(devices)} of them here.{how}'
    )
  return devices[: int(number)]


def _tpu_devices(name: str) -> Sequence[jax.Device]:
  """Returns devices that one can compile for, and nothing else."""
  try:
    with _alongside_others():
      topo = topologies.get_topology_desc(platform='tpu', topology_name=name)
  except Exception as e:  # jax names neither the type nor the case.
    raise _errors.PlanError(_why(name, str(e))) from e
  return topo.devices


def _why(name: str, message: str) -> str:
  """Returns advice on an error of jax or libtpu."""
  if 'TPU support not installed' in message:
    return (
        f'topology={name!r} needs the TPU compiler, libtpu, which runs on any'
        ' Linux machine: pip install "gemma4_lora[tpu]".'
    )
  if 'lockfile' in message or 'already in use' in message:
    return (
        f'topology={name!r}: another process on this machine holds libtpu. Wait'
        ' until it ends. If there is none, remove /tmp/libtpu_lockfile. If none'
        ' trains on a TPU here, ALLOW_MULTIPLE_LIBTPU_LOAD=1 lets both go on.'
        f' libtpu says: {message}'
    )
  return (
      f'topology={name!r}: the TPU compiler knows no such topology. Examples:'
      f' {_EXAMPLES}. libtpu says: {message}'
  )


@contextlib.contextmanager
def _alongside_others() -> Iterator[None]:
  """Lets several processes load libtpu if they would not share a TPU.

  libtpu looks at the variables once, when it is loaded.
  """
  defaults = {'TPU_SKIP_MDS_QUERY': '1'}
  if not _has_chips():
    defaults['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
    # Without it, libtpu logs long complaints.
    defaults['TPU_WORKER_HOSTNAMES'] = 'localhost'
    defaults['TPU_HOST_BOUNDS'] = '1,1,1'
  ours = {k: v for k, v in defaults.items() if k not in os.environ}
  os.environ.update(ours)
  try:
    yield
  finally:
    for key in ours:
      os.environ.pop(key, None)


def _has_chips() -> bool:
  """Whether a TPU is attached to this machine."""
  return any(os.path.exists(path) for path in ('/dev/accel0', '/dev/vfio/0'))
