"""Adds the branches to the base weights, and takes them out again."""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from gemma import peft
import jax
import jax.numpy as jnp

from gemma4_lora import _trees
from gemma4_lora import variants
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _weights
from gemma4_lora.nn import _lora
from gemma4_lora.nn import _validate
from gemma4_lora.nn import _views
from gemma4_lora.nn.branches import _pending
from gemma4_lora.nn.branches import _quantized_base
from gemma4_lora.quant import _arrays
from gemma4_lora.targets import _full


def fuse_params(model: _lora.LoRA, params: Mapping[str, Any]) -> dict[str, Any]:
  """Adds the branches to the base weights.

  ```python
  fused = g4.nn.fuse_params(model, params)
  sampler = gm.text.ChatSampler(model=model.model, params=fused)
  ```

  Each weight is summed in float32 and rounded once to its dtype; what
  `modules_to_save` trained takes the place of the base. A quantised base is
  dequantised, all of it: it is what LoRA was trained on. Clip bounds of towers
  stay: their branches are inside the clips. On gemma 4.0.1, sample from a fused
  26B_A4B through `g4.nn.RouterFix`, and from any fused model that reads images.

  Args:
    model: A `g4.nn.LoRA`.
    params: Its parameters, nested. They stay as they are.

  Returns:
    Parameters of `model.model`: the base's structure, shapes, dtypes and
    shardings, without LoRA leaves; what was quantised is in the model's dtype.
    Leaves that LoRA does not change are the same arrays.

  Raises:
    ValueError: `model` has no LoRA, or `params` lacks a leaf or is quantised
      otherwise: they are fused already, or were made by another model; or LoRA
      has NaN or infinite values, or no values yet (PiSSA and others wait for
      the base).
  """
  check_lora(model, params, who='g4.nn.fuse_params')
  base, lora = peft.split_params(dict(params))
  problem = _pending.problem(_trees.flatten(lora))
  if problem:
    raise ValueError(f'g4.nn.fuse_params: {problem}')
  _quantized_base.check(base, model.quantized)
  for path, change in changes_of(model, base, lora).items():
    _trees.put(
        base, path, change.fused(_trees.get(base, path), model.model.dtype)
    )
  return base


def unfuse_params(
    model: _lora.LoRA, fused: Mapping[str, Any], lora: Mapping[str, Any]
) -> dict[str, Any]:
  """Takes the branches out of fused weights: undoes `fuse_params`.

  The base comes back up to the rounding of its dtype. In bfloat16 that is an
  error of up to 2**-8 of each weight: keep the released checkpoint where there
  is one.

  Args:
    model: A `g4.nn.LoRA`.
    fused: Parameters from `fuse_params`, nested.
    lora: The LoRA leaves, nested; the base may be among them, and is not read.

  Returns:
    Parameters of `model`, LoRA leaves included. The base of a quantised model
    stays dequantised: they are those of `model.clone(quantize=None)`.

  Raises:
    ValueError: `fused` has LoRA leaves, or `lora` lacks some; or fusing forgets
      the base: all of it with `modules_to_save`, its norm with some variants.
  """
  if any(map(_trees.is_lora, _paths(fused))):
    raise ValueError(
        'g4.nn.unfuse_params: fused has LoRA leaves: it is not what'
        ' g4.nn.fuse_params returns.'
    )
  check_lora(model, lora, who='g4.nn.unfuse_params')
  for setting, forgets in (
      (model.variant.setting, not model.variant.can_unfuse),
      ('modules_to_save=', bool(model.modules_to_save)),
  ):
    if forgets:
      raise ValueError(
          f'g4.nn.unfuse_params: with {setting} the base cannot be recovered'
          ' from fused weights. Restore it from its checkpoint.'
      )
  base, _ = peft.split_params(dict(fused))  # New dicts of the same arrays.
  _, lora = peft.split_params(dict(lora))
  for path, change in changes_of(model, base, lora).items():
    _trees.put(base, path, change.unfuse(_trees.get(base, path)))
  return peft.merge_params(base, lora)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
  """What fusing does to one base leaf.

  Attributes:
    branches: LoRA's branches of the projections in the leaf.
    copies: What takes the place of parts of the leaf.
  """

  branches: tuple[_views.LinearView, ...] = ()
  copies: tuple[tuple[_full.Saved, jax.Array], ...] = ()

  def fuse(self, leaf: jax.Array) -> jax.Array:
    """Returns the leaf with everything in it."""
    new = leaf
    for view in self.branches:
      new = _added(new, view, scale=view.scale)
    for part, copy in self.copies:
      new = _weights.with_part(new, part.row, copy)
    return _like(new, leaf)

  def fused(self, leaf: Any, dtype: Any) -> jax.Array:
    """Returns what takes the leaf's place, rounded once.

    Args:
      leaf: An array, or a quantised one.
      dtype: The dtype of the weight before it was quantised.
    """
    if not _arrays.is_quantized(leaf):
      return self.fuse(leaf)
    if not self.branches and not self.copies:
      return _dequantized(leaf, dtype)
    return self.fuse(_dequantized(leaf, jnp.float32)).astype(dtype)

  def unfuse(self, leaf: jax.Array) -> jax.Array:
    """Returns the leaf without the branches."""
    new = leaf
    for view in self.branches:
      new = _added(new, view, scale=-view.scale)
    return _like(new, leaf)

  @property
  def by_rows(self) -> bool:
    """Whether rows along the first axis can be fused one by one.

    False if gemma packs projections along that axis, or if a variant needs all
    inputs at once.
    """
    whole = [x.row for x in self.branches if x.variant.fuses_whole_inputs]
    return not any(0 in row.in_axes for row in whole) and not any(
        x.row.slot_axis == 0
        for x in (*self.branches, *(c for c, _ in self.copies))
    )

  def rows(self, start: int, stop: int) -> 'Change':
    """Returns the change of some rows; see `by_rows`."""
    some = slice(start, stop)
    return Change(
        branches=tuple(_rows(view, some) for view in self.branches),
        copies=tuple((part, copy[some]) for part, copy in self.copies),
    )


def _rows(view: _views.LinearView, some: slice) -> _views.LinearView:
  """Returns a view whose LoRA is that of rows of its weight."""
  leaves = dict(view.leaves)
  for leaf in view.variant.leaves:
    axes = leaf.axes(view.row)
    if 0 in axes:
      index = (slice(None),) * axes.index(0) + (some,)
      leaves[leaf.name] = leaves[leaf.name][index]
  return dataclasses.replace(view, leaves=leaves)


def changes_of(
    model: _lora.LoRA, base: Mapping[str, Any], lora: Mapping[str, Any]
) -> dict[str, Change]:
  """Returns what fusing does to each base leaf that it changes, by path.

  What is quantised is changed in any case: it is dequantised.

  Args:
    model: A `g4.nn.LoRA`.
    base: The base leaves; shapes are enough.
    lora: The LoRA leaves.
  """
  # As shapes, lest views slice what gemma packs: a second base.
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), base)
  params = peft.merge_params(shapes, dict(lora))
  branches: dict[str, list[_views.LinearView]] = {}
  for view in _views.linears(model, params).values():
    branches.setdefault(view.row.path, []).append(view)
  copies: dict[str, list[tuple[_full.Saved, jax.Array]]] = {}
  for part in model.saved:
    copy = _trees.get(params, part.path)
    copies.setdefault(part.row.path, []).append((part, copy))
  quantized = (path for path, _ in _quantized_base.quantized_nodes(base))
  return {
      path: Change(
          branches=tuple(branches.get(path, ())),
          copies=tuple(copies.get(path, ())),
      )
      for path in dict.fromkeys((*branches, *copies, *quantized))
  }


def _dequantized(leaf: Mapping[str, Any], dtype: Any) -> jax.Array:
  """Returns what a quantised leaf stands for, where its codes are."""
  return _like(
      _dequantize(dict(leaf), jnp.dtype(dtype)), _arrays.codes_of(leaf)
  )


# Compiled: nothing of the leaf's size in float32 on the way to bfloat16.
_dequantize = jax.jit(_arrays.dequantize, static_argnums=1)


def _added(
    weight: jax.Array, view: _views.LinearView, *, scale: float
) -> jax.Array:
  """Returns the weight with one projection's branch added."""
  row = _weights.nameless(view.row)
  return _add(
      weight, view.lora_a, view.lora_b, view.own, row, scale, view.variant
  )


@functools.partial(jax.jit, static_argnames=('row', 'variant'))
def _add(
    weight: jax.Array,
    a: jax.Array,
    b: jax.Array,
    own: Mapping[str, jax.Array],
    row: _linears.Linear,
    scale: float,
    variant: variants.Variant,
) -> jax.Array:
  """Adds a branch; no name of the row is in the compiled program."""
  part = _weights.part(weight, row).astype(jnp.float32)
  ins, outs, batch, letters = _letters(part, row)
  product = jnp.einsum(
      f'{batch}{ins}r,{batch}r{outs}->{letters}',
      a.astype(jnp.float32),
      b.astype(jnp.float32),
      precision='highest',
  )
  merged = variant.fused(part, scale * product, own, row)
  return _weights.with_part(weight, row, merged)


def _letters(
    part: jax.Array, row: _linears.Linear
) -> tuple[str, str, str, str]:
  """Names the axes of a part: input, output, batch, and all in their order."""
  letters = 'abcdefgh'[: part.ndim]
  in_axes, out_axes = _weights.axes(row)
  ins = ''.join(letters[axis] for axis in in_axes)
  outs = ''.join(letters[axis] for axis in out_axes)
  batch = ''.join(c for c in letters if c not in ins + outs)
  return ins, outs, batch, letters


def _like(new: jax.Array, old: jax.Array) -> jax.Array:
  """Gives a leaf the sharding of the one whose place it takes."""
  return jax.device_put(new, old.sharding)


def check_lora(model: Any, params: Mapping[str, Any], *, who: str) -> None:
  """Raises unless the parameters have LoRA, and all of it is the model's."""
  if not isinstance(model, _lora.LoRA):
    raise ValueError(f'{who} takes a g4.nn.LoRA. Got: {type(model).__name__}')
  if not any(map(_trees.is_lora, _paths(params))):
    raise ValueError(
        f'{who}: the parameters have no LoRA leaf. They are fused already,'
        ' or are those of the base model.'
    )
  _validate.check_read(params, model.lora_shapes)


def _paths(params: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
  for path, _ in jax.tree_util.tree_leaves_with_path(params):
    yield tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
