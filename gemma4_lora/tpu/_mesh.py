"""Kauldron's shardings on devices that need not be present."""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
from typing import Any

import jax
from kauldron import kd
import numpy as np

# Values that Kauldron computes once and keeps.
_CACHED = ('DEVICES_MESH', 'REPLICATED', 'FIRST_DIM')


@contextlib.contextmanager
def on_devices(devices: Sequence[jax.Device]) -> Iterator[None]:
  """Makes Kauldron's mesh of `devices`, as a context.

  Resolve configs within it: `kd.sharding.ShardingStrategy()` takes the mesh
  when it is made.

  Args:
    devices: All of them, in the order of `jax.devices()` there.
  """
  api = vars(kd.sharding)
  saved = {name: api.pop(name) for name in _CACHED if name in api}
  mesh = jax.sharding.Mesh(np.asarray(devices), axis_names=('devices',))
  api['DEVICES_MESH'] = mesh
  # `FSDPSharding` divides by it rather than by the size of its mesh.
  device_count = jax.device_count
  jax.device_count = lambda backend=None: len(devices)
  try:
    yield
  finally:
    jax.device_count = device_count
    for name in _CACHED:
      api.pop(name, None)
    api.update(saved)


def moved(trainer: kd.train.Trainer) -> kd.train.Trainer:
  """Returns a Trainer that was made outside of `on_devices`, moved into it."""
  old = trainer.sharding
  sharding = dataclasses.replace(
      old,
      **{
          field.name: jax.tree.map(_moved, getattr(old, field.name))
          for field in dataclasses.fields(old)
          if field.init
      },
  )
  trainstep = dataclasses.replace(trainer.trainstep, sharding=sharding)
  changes: dict[str, Any] = {'sharding': sharding, 'trainstep': trainstep}
  return dataclasses.replace(trainer, **changes)


def _moved(sharding: Any) -> Any:
  """Returns the sharding on this mesh, if its mesh is like Kauldron's."""
  if not isinstance(sharding, jax.sharding.NamedSharding):
    return sharding
  if sharding.mesh.axis_names != ('devices',):
    return sharding
  return jax.sharding.NamedSharding(kd.sharding.DEVICES_MESH, sharding.spec)
