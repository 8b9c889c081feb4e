"""The adapted projections of a model, each with its arrays."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax

from gemma4_lora import _trees
from gemma4_lora import variants
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _weights
from gemma4_lora.nn import _lora
from gemma4_lora.quant import _arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearView:
  """One adapted projection.

  Attributes:
    row: The projection's row, which says which axes are input and output.
    base: Its part of the base weight, without the axis along which gemma packs
      projections: k of `kv_einsum[2, K, D, H]` is `[K, D, H]`. A quantised base
      is dequantised to the model's dtype.
    leaves: Its LoRA leaves by name; `'a'` and `'b'` in any case. Those of experts
      have an axis `E` in front, and those of the vision tower, whose layers gemma
      stacks, an axis `L`, as the base there.
    variant: Plain LoRA or DoRA.
    scale: Factor of A times B. Does not include the base's own factor
      (`w_scale`), which applies to both.
  """

  row: _linears.Linear
  base: jax.Array
  leaves: Mapping[str, jax.Array]
  variant: variants.Variant
  scale: float

  @property
  def lora_a(self) -> jax.Array:
    """A, `[*in, rank]`; `[E, *in, rank]`, `[L, *in, rank]`."""
    return self.leaves['a']

  @property
  def lora_b(self) -> jax.Array:
    """B, `[rank, *out]`; `[E, rank, *out]`, `[L, rank, *out]`."""
    return self.leaves['b']

  @property
  def lora_m(self) -> jax.Array | None:
    """The leaf `m`, `[*out]` or `[L, *out]`; None if the variant has none."""
    return self.leaves.get('m')

  @property
  def own(self) -> dict[str, jax.Array]:
    """The leaves that the variant has beside A and B, by name."""
    return {leaf.name: self.leaves[leaf.name] for leaf in self.variant.own}


def linears(
    model: _lora.LoRA, params: Mapping[str, Any]
) -> dict[str, LinearView]:
  """Returns each adapted projection as base weight, A and B.

  ```python
  view = g4.nn.linears(model, params)['layer_0.mlp.gate']
  view.base  # [hidden, width]: a slice of `gating_einsum[2, hidden, width]`
  ```

  Args:
    model: A `g4.nn.LoRA`.
    params: Its parameters, nested; arrays or `jax.ShapeDtypeStruct`s.

  Returns:
    View by name (`layer_4.attn.v`, `layer_0.mlp.gate`,
    `embedder.per_layer_model_projection`), in the order of the forward pass.

  Raises:
    ValueError: `model` has no LoRA, or `params` lacks a leaf.
  """
  if not isinstance(model, _lora.LoRA):
    raise ValueError(
        'g4.nn.linears(model, params) takes a g4.nn.LoRA. Got:'
        f' {type(model).__name__}'
    )
  views = {}
  path, weight = None, None
  for linear in model.adapted:
    row = linear.row
    if row.path != path:  # Not once for each projection that it packs.
      path = row.path
      weight = _arrays.dense(_trees.get(params, path), model.model.dtype)
    views[row.name] = LinearView(
        row=row,
        base=_weights.part(weight, row),
        leaves={
            x: _trees.get(params, f'{row.lora_path}.{x}') for x in linear.shapes
        },
        variant=linear.variant,
        scale=linear.scale(use_rslora=model.use_rslora),
    )
  return views
