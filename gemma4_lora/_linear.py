"""A row of the table of linears: one projection, as Hugging Face cuts it."""

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
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

  Attributes:
    tower: `'text'`, `'vision'` or `'audio'`.
    layer: Layer number, None for what stands outside the layers and for what is
      stacked.
    projection: Logical name: `'q'`, `'gate'`, ...
    group: What selectors go by: `'attention'`, `'mlp'`, `'convolution'`,
      `'per_layer_inputs'`, `'experts'`, `'multimodal_projections'`; or the name
      of a projection that only its own name selects: `'router'`, ...
    path: Dotted path of the base weight in `params`.
    shape: Shape of the whole base weight.
    in_axes: Axes of the base weight that the input is contracted over.
    out_axes: Axes of the base weight that the output gains.
    batch_axes: Axes along which each index has a linear of its own: experts,
      and the layers of a stacked weight.
    stacked: Whether axis 0 is the layers of a tower that runs them by `nn.scan`
      (the vision tower): the module sees one layer, and the weight as well as A
      and B have all.
    slot_axis: Axis of the base weight along which projections are packed.
    slot: Index of this projection along `slot_axis`.
    attention: `'local'` or `'global'`: the attention of its layer, None outside
      the text tower's layers.
    live: False where the model never uses the result.
    hf_name: Module name within Hugging Face's language model (for towers:
      within the model around it), whose weight is `(prod(out), prod(in))`; the
      two expert tensors name the parameter. `*` stands for the layer of a
      stacked weight, whose layers are modules of their own there.
  """

  tower: str = 'text'
  layer: int | None
  projection: str
  group: str
  path: str
  shape: tuple[int, ...]
  in_axes: tuple[int, ...]
  out_axes: tuple[int, ...]
  batch_axes: tuple[int, ...] = ()
  stacked: bool = False
  slot_axis: int | None = None
  slot: int | None = None
  attention: str | None = None
  live: bool = True
  hf_name: str

  @property
  def module_path(self) -> str:
    """Dotted path under which the LoRA leaves stand: the weight's own scope.

    `layer_0.attn.q_einsum.w` -> `layer_0.attn.q_einsum`, but
    `layer_0.mlp.linear` -> `layer_0.mlp`: the MLP's linears are bare arrays.
    """
    return self.path.rpartition('.')[0]

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
  def layers(self) -> tuple[int, ...]:
    """Numbers of the layers that the weight belongs to."""
    if self.stacked:
      return tuple(range(self.shape[0]))
    return () if self.layer is None else (self.layer,)

  def starred(self, path: str) -> str:
    """A path of this row with `*` for the layer: `layer_*.attn.q_einsum`."""
    return path if self.layer is None else starred(path)

  @property
  def hf_names(self) -> tuple[str, ...]:
    """`hf_name` of each layer of a stacked weight, else the one there is."""
    if not self.stacked:
      return (self.hf_name,)
    return tuple(self.hf_name.replace('*', str(n)) for n in self.layers)

  @property
  def one_layer(self) -> 'Linear':
    """The row as the module sees it, within `nn.scan`."""
    if not self.stacked:
      return self
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


def starred(path: str) -> str:
  """A path with `*` for the number of any layer: `layer_*.attn.q_einsum`."""
  return re.sub(r'(?<=layer_)\d+(?=\.)|(?<=layers_)\d+(?=\.)', '*', path)


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
