"""Writes small checkpoints in the layouts of the released ones."""

from collections.abc import Mapping
import math
import pathlib
import typing
from typing import Any
from typing import Literal

from etils import epath
from flax import linen as nn
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import orbax.checkpoint as ocp

from gemma4_lora import _trees
from gemma4_lora import host
from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _released
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.host.folders import _new_folder
from gemma4_lora.testing import _hf_checkpoint

Layout = Literal[
    'nested', 'nested_bare', 'flat', 'stacked', 'kauldron', 'kauldron_w', 'hf'
]

_WHO = 'make_checkpoint'
# Number of random numbers that are drawn at once.
_BLOCK = 2**24

_Params = dict[str, Any]
_Flat = dict[tuple[str, ...], Any]


def make_checkpoint(
    model: nn.Module,
    path: epath.PathLike,
    *,
    layout: Layout = 'nested',
    seed: int = 0,
    dtype: Any = None,
    params: _Params | None = None,
    prune_shared_kv: bool = False,
    step: int = 0,
) -> _Params:
  """Writes a checkpoint of a model to disk.

  ```python
  params = g4.testing.make_checkpoint(
      g4.testing.Gemma4_E2B(tokens='batch.input'), '/tmp/gemma4-e2b-tiny'
  )
  ```

  | layout | path of an MLP linear in the file |
  |---|---|
  | `nested`, as Gemma 4 is released | `layer_0.mlp.linear.w` |
  | `nested_bare`, as in `model.init` | `layer_0.mlp.linear` |
  | `flat` | `transformer/layer_0/mlp/linear` then `w` |
  | `stacked` | `transformer/stacked_layers/attention_type_0/mlp/linear`, `w` |
  | `kauldron`, a workdir of a Kauldron run | `params.layer_0.mlp.linear` |
  | `kauldron_w`, of a run with gemma HEAD | `params.layer_0.mlp.linear.w` |
  | `hf`, a folder of transformers | `model.layers.0.mlp.down_proj.weight` |

  Args:
    model: A Gemma 4 model, or a LoRA wrapper of one, whose base model is taken.
      With `text_only=False` the towers are written too, except for `hf`.
    path: Where to write, here or in a bucket. Must not exist.
    layout: How to arrange the leaves.
    seed: Seed of the random values; none is 0 or 1, norms and scales included.
    dtype: Dtype of all leaves in the file; `None` for the model's own.
    params: Values to write instead of random ones, nested as in `model.init`.
      LoRA leaves are left out.
    prune_shared_kv: Leave out k, v and key norms of KV-shared layers, as
      pruned (QAT) checkpoints do.
    step: The step of the checkpoint, for the Kauldron layouts.

  Returns:
    The written values, nested as in `model.init`. Leaves that
    `prune_shared_kv` leaves out of the file are there, with random values.

  Raises:
    FileExistsError: There is something at `path`.
    ValueError: The layout is unknown, `prune_shared_kv` has nothing to prune,
      or a model for `hf` has towers.
  """
  check_layout(layout, who='make_checkpoint')
  path = _new_folder.check_free(
      host.path(path, who=_WHO).expanduser(),
      overwrite=False,
      who=_WHO,
      how='remove this one',
      by_orbax=layout != 'hf',
  )
  model = base_model(model)
  if params is None:
    params = random_params(abstract_params(model), seed=seed)
  flat = {k: v for k, v in _flatten(params).items() if not _trees.is_lora(k)}
  del params
  for key in flat:  # One by one, so that there are never two copies of all.
    flat[key] = jnp.asarray(flat[key], dtype or flat[key].dtype)
  written = flat
  if prune_shared_kv:
    written = _without_shared_kv(flat, model.config)
  _write(path, written, layout=layout, step=step, model=model)
  return _nest({k: np.asarray(v) for k, v in flat.items()})


def check_layout(layout: str, *, who: str) -> None:
  """Checks the name of a layout.

  Raises:
    ValueError: There is no layout of this name.
  """
  if layout not in typing.get_args(Layout):
    raise ValueError(
        f'{who}: layout must be one of {typing.get_args(Layout)}, got'
        f' {layout!r}.'
    )


def base_model(model: nn.Module) -> nn.Module:
  """Returns the model inside a LoRA wrapper, or the model itself."""
  while isinstance(inner := getattr(model, 'model', None), nn.Module):
    model = inner
  return model


def abstract_params(model: nn.Module) -> _Params:
  """Returns the shapes of all parameters of a Gemma 4 model, towers included.

  Args:
    model: A Gemma 4 model, not wrapped.
  """
  return _upstream.abstract_params(model)


def random_params(shapes: _Params, *, seed: int = 0) -> _Params:
  """Returns random values for parameters, without trivial ones.

  Scales are about 1 and weights about 0.1, so that activations stay finite;
  clipping bounds are about ±3, the lower below the upper.

  Args:
    shapes: Nested shapes and dtypes.
    seed: Seed of the values.

  Returns:
    NumPy arrays in the structure of `shapes`.
  """
  rng = np.random.default_rng(seed)

  def value(key, x):
    offset = 0.0
    if key[-1].endswith('scale'):
      offset = 1.0
    elif key[-1].endswith('_min'):
      offset = -3.0
    elif key[-1].endswith('_max'):
      offset = 3.0
    out = np.empty(math.prod(x.shape), x.dtype)
    # In pieces: in float64 a large leaf would take four times its size.
    for start in range(0, out.size, _BLOCK):
      part = out[start : start + _BLOCK]
      part[:] = offset + 0.1 * rng.standard_normal(part.size)
    return out.reshape(x.shape)

  return _nest({k: value(k, x) for k, x in _flatten(shapes).items()})


def _without_shared_kv(flat: _Flat, config: Any) -> _Flat:
  shares_kv = enumerate(_upstream.shares_kv(config))
  shared = {f'layer_{i}' for i, is_shared in shares_kv if is_shared}
  if not shared:
    raise ValueError(
        'make_checkpoint: prune_shared_kv=True, and no layer of the model'
        ' shares keys and values of another.'
    )
  of_kv = _released.paths_in_layer('k', 'v', 'key_norm')
  return {
      k: v for k, v in flat.items() if not (k[0] in shared and k[1:] in of_kv)
  }


def _write(
    path: epath.Path,
    flat: _Flat,
    *,
    layout: Layout,
    step: int,
    model: Any,
) -> None:
  """Writes the leaves of a model in a layout."""
  # The workdir of a run may go on.
  sealed = not layout.startswith('kauldron')
  with _new_folder.new_folder(
      path, overwrite=False, sealed=sealed, who=_WHO
  ) as folder:
    _write_in(folder, flat, layout=layout, step=step, model=model)


def _write_in(
    folder: pathlib.Path,
    flat: _Flat,
    *,
    layout: Layout,
    step: int,
    model: Any,
) -> None:
  """Writes into an empty folder of this machine."""
  if layout == 'hf':
    leaves = {'.'.join(k): np.asarray(v) for k, v in flat.items()}
    _hf_checkpoint.write(folder, leaves, model.config)
    return
  if layout in ('nested_bare', 'kauldron'):
    tree = _nest(flat)
  else:
    tree = _nest({_names.released(k): v for k, v in flat.items()})
  if layout.startswith('kauldron'):
    state = kd.train.TrainState(
        step=step, params=tree, opt_state=None, collections={}
    )
    with kd.ckpts.Checkpointer(workdir=folder, save_interval_steps=1) as ckpt:
      ckpt.save(state, step=step, force=True)
      ckpt.wait_until_finished()
    return
  if layout in ('flat', 'stacked'):
    tree = _flat_layout({_names.released(k): v for k, v in flat.items()})
  if layout == 'stacked':
    tree = _stacked_layout(tree, model.config.attention_types)
  # Orbax makes its folder itself.
  made = folder / 'checkpoint'
  with ocp.StandardCheckpointer() as ckpt:
    ckpt.save(made, tree)
    ckpt.wait_until_finished()
  for file in made.iterdir():
    file.rename(folder / file.name)
  made.rmdir()


def _flat_layout(flat: _Flat) -> dict[str, _Params]:
  """Returns `{'transformer/layer_0/attn/q_einsum': {'w': …}}`."""
  tree: dict[str, _Params] = {}
  for (*parents, leaf), value in flat.items():
    root = 'transformer'
    if parents and parents[0] == 'vision_encoder':
      root, parents = 'SigLiPFromPatches_0', parents[1:]
    tree.setdefault('/'.join([root, *parents]), {})[leaf] = value
  return tree


def _stacked_layout(
    tree: dict[str, _Params], attention_types: Any
) -> dict[str, _Params]:
  """Stacks layers that are one attention pattern apart.

  Attention types are split until all layers of one type have the same shapes:
  double-wide MLPs of KV-shared layers need a type of their own.

  Args:
    tree: The flat layout.
    attention_types: Attention types of the model's layers.
  """
  n = len(attention_types)
  by_layer: dict[tuple[str, str], dict[int, Any]] = {}
  out: dict[str, _Params] = {}
  for module, leaves in tree.items():
    root, *rest = module.split('/', 2)
    is_layer = rest and rest[0].startswith('layer_')
    for leaf, value in leaves.items():
      if root == 'transformer' and is_layer:
        suffix = ''.join(f'/{x}' for x in rest[1:])
        layer = int(rest[0].removeprefix('layer_'))
        by_layer.setdefault((suffix, leaf), {})[layer] = value
      else:
        out.setdefault(module, {})[leaf] = value
  length = next(
      p
      for p in range(_period(attention_types), n + 1)
      if all(_stacks(layers, p) for layers in by_layer.values())
  )
  for (suffix, leaf), layers in by_layer.items():
    for i in range(length):
      slices = [layers[j] for j in range(i, n, length) if j in layers]
      if slices:
        module = f'transformer/stacked_layers/attention_type_{i}{suffix}'
        out.setdefault(module, {})[leaf] = jnp.stack(slices)
  return out


def _period(types: Any) -> int:
  n = len(types)
  return next(
      p
      for p in range(1, n + 1)
      if all(types[i] == types[i % p] for i in range(n))
  )


def _stacks(layers: Mapping[int, Any], period: int) -> bool:
  """Whether the layers that are `period` apart have equal shapes."""
  return all(
      layers[i].shape == layers[i % period].shape
      for i in layers
      if i % period in layers
  )


def _flatten(tree: Any, path: tuple[str, ...] = ()) -> _Flat:
  if not isinstance(tree, Mapping):
    return {path: tree}
  return {
      k: v
      for key, sub in tree.items()
      for k, v in _flatten(sub, (*path, key)).items()
  }


def _nest(flat: _Flat) -> _Params:
  tree: _Params = {}
  for (*parents, leaf), value in flat.items():
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[leaf] = value
  return tree
