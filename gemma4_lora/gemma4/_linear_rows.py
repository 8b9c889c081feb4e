"""A row of the table of linears: one projection, as Hugging Face cuts it."""

import dataclasses
import math

from gemma4_lora.gemma4 import _rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(_rows.Row):
  """One projection of one layer.

  Example: `v` of a local layer of E2B, whose weight lies in `kv_einsum`:

  ```python
  Linear(
      tower='text', layer=4, projection='v', group='attention',
      path='layer_4.attn.kv_einsum.w', shape=(2, 1, 1536, 256),
      slot_axis=0, slot=1, in_axes=(2,), out_axes=(1, 3),
      hf_name='layers.4.self_attn.v_proj',
  )
  ```

  `group` is `'attention'`, `'mlp'`, `'convolution'`, `'per_layer_inputs'`,
  `'experts'`, `'multimodal_projections'`; or the name of a projection that only
  its own name selects: `'router'`, ... `hf_name` is a module, whose weight is
  `(prod(out), prod(in))`; of the two expert tensors it names the parameter.

  Attributes:
    in_axes: Axes of the base weight that the input is contracted over.
    out_axes: Axes of the base weight that the output gains.
    batch_axes: Axes along which each index has a linear of its own: experts,
      and the layers of a stacked weight, whose A and B are stacked too.
  """

  in_axes: tuple[int, ...]
  out_axes: tuple[int, ...]
  batch_axes: tuple[int, ...] = ()

  @property
  def lora_path(self) -> str:
    """Dotted path of the `{'a': ..., 'b': ...}` that adapts this projection."""
    return f'{self.module_path}.lora.{self.projection}'

  @property
  def name(self) -> str:
    """Short unique name: `layer_4.attn.v`, `layer_0.mlp.gate`."""
    scope = [s for s in self.module_path.split('.') if s not in _WEIGHT_SCOPES]
    if scope[-1:] != [self.projection]:
      scope.append(self.projection)
    return '.'.join(scope)

  @property
  def in_shape(self) -> tuple[int, ...]:
    return tuple(self.shape[i] for i in self.in_axes)

  @property
  def out_shape(self) -> tuple[int, ...]:
    return tuple(self.shape[i] for i in self.out_axes)

  @property
  def batch_shape(self) -> tuple[int, ...]:
    return tuple(self.shape[i] for i in self.batch_axes)

  @property
  def one_layer(self) -> 'Linear':
    """The row as the module sees it, within `nn.scan`."""
    return self.first_of_batch if self.stacked else self

  @property
  def first_of_batch(self) -> 'Linear':
    """The row of one layer of a stacked weight, or of one expert."""
    slot_axis = None if self.slot_axis is None else self.slot_axis - 1
    return dataclasses.replace(
        self,
        stacked=False,
        shape=self.shape[1:],
        in_axes=tuple(axis - 1 for axis in self.in_axes),
        out_axes=tuple(axis - 1 for axis in self.out_axes),
        batch_axes=tuple(axis - 1 for axis in self.batch_axes[1:]),
        slot_axis=slot_axis,
    )

  def lora_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A (`*batch *in rank`) and B (`*batch rank *out`)."""
    return (
        (*self.batch_shape, *self.in_shape, rank),
        (*self.batch_shape, rank, *self.out_shape),
    )

  def num_lora_params(self, rank: int) -> int:
    return sum(math.prod(s) for s in self.lora_shapes(rank))


# Scopes that hold one weight and say nothing that the projection does not.
_WEIGHT_SCOPES = frozenset(
    {
        'q_einsum',
        'k_einsum',
        'kv_einsum',
        'attn_vec_einsum',
        'gating_einsum',
        'linear',
        'router_logits',
        'input_projection',
        'ffn_layer1',
        'ffn_layer2',
        'query',
        'key',
        'value',
        'relative_position_embedding',
        'pos_proj',
        'post',
        'input_proj',
    }
)
