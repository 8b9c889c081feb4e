"""The base of a transform that must be called to know its result.

Known loaders are read for their settings, and the base is then read leaf by
leaf from the file. Any other `init_transform=`, a subclass of these too, may do
anything. It is called once, as the train step calls it, and the whole base is
held in memory.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from kauldron import kd

from gemma4_lora import _trees
from gemma4_lora import nn
from gemma4_lora.ckpts import _requests
from gemma4_lora.ckpts.lora import _fresh_lora
from gemma4_lora.gemma4 import _upstream

_SHOWN = 3
_INSTEAD = (
    'Or call it by hand and give g4.nn.fuse_params(model, params) what it'
    ' returns; or save that with gm.ckpts.save_params(params, path), and give'
    ' init_transform=g4.ckpts.SkipLoRA4(wrapped=g4.ckpts.PartialLoad(path=…)).'
)


def call(
    model: Any, init_transform: Any, base: Mapping[str, Any], *, who: str
) -> dict[str, Any]:
  """Returns the base as an `init_transform=` leaves it.

  The transform gets a state whose base leaves are `jax.ShapeDtypeStruct`s: so a
  value that it does not set is recognised.

  Args:
    model: The config's model.
    init_transform: The config's `init_transform=`.
    base: Shapes and dtypes of the model's base, nested, as it is quantised.
    who: The command, for messages.

  Returns:
    Arrays of these shapes and dtypes, nested; in the host's memory, unless the
    transform puts them elsewhere. The whole model is held, once.

  Raises:
    OSError: There is no checkpoint.
    ValueError: The transform fails without values, or leaves a leaf without
      one, or with another shape or dtype.
  """
  name = describe(init_transform)
  try:
    state = init_transform.transform(_state(model, base))
  except OSError:
    raise
  except Exception as e:  # pylint: disable=broad-exception-caught
    raise ValueError(
        f'{who}: init_transform= has {name}, which may do anything, and so was'
        ' called, with jax.ShapeDtypeStruct for leaves of the base. It failed:'
        f' {type(e).__name__}: {e}\nWrite it so that it restores such leaves'
        f' before it reads their values. {_INSTEAD}'
    ) from e
  given, _ = _trees.split_lora(state.params)
  _check(given, base, name=name, who=who)
  return given


def describe(init_transform: Any) -> str:
  """Returns the classes that have to be called, for messages."""
  return ', '.join(_requests.unknown(init_transform))


def _state(model: Any, base: Mapping[str, Any]) -> kd.train.TrainState:
  """Returns a state to restore into, on the host."""
  params = base
  if isinstance(model, nn.LoRA):
    _, lora = _trees.split_lora(_upstream.abstract_params(model))
    params = _trees.merge(base, lora)
  sharding = jax.sharding.SingleDeviceSharding(_host())
  params = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
      params,
  )
  state = kd.train.TrainState(
      step=0, params=params, opt_state=None, collections={}
  )
  return _fresh_lora.with_fresh_lora(state, model)


def _host() -> jax.Device:
  """Returns the device whose memory is the host's, if JAX has it."""
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # JAX_PLATFORMS leaves it out.
    return jax.local_devices()[0]


def _check(given: Any, base: Any, *, name: str, who: str) -> None:
  """Raises unless all leaves have values of the right shape and dtype."""
  got, want = _trees.flatten(given), _trees.flatten(base)
  specs = {
      path: (_spec(want.get(path)), _spec(got.get(path)))
      for path in {**want, **got}
  }
  lines = [
      f'  {_trees.join(path)}: before {before}, after {after}'
      for path, (before, after) in specs.items()
      if before != after or isinstance(got[path], jax.ShapeDtypeStruct)
  ]
  if lines:
    shown = '\n'.join(lines[:_SHOWN])
    raise ValueError(
        f'{who}: init_transform= has {name}, which may do anything, and so was'
        f' called. It left {len(lines)} leaves of the base without a value'
        ' (ShapeDtypeStruct), or changed their shape or dtype:\n'
        f'{shown}\nWrite it so that it restores all of them. {_INSTEAD}'
    )


def _spec(leaf: Any) -> str:
  if leaf is None:
    return 'absent'
  return f'{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}'
