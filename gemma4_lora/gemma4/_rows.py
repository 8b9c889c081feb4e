"""Rows of the table of parameters: linears, split as in PEFT, and leaves.

Code that needs a name of Gemma 4 reads rows.
"""

import dataclasses
import re

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _names

# Fields of a config, one per axis: None where no field decides.
Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """The place of a parameter, or of a part of one.

  Attributes:
    tower: `'text'`, `'vision'` or `'audio'`.
    layer: Layer number; None outside the layers and for stacked weights.
    projection: Logical name: `'q'`, `'gate'`, `'pre_attention_norm'`, ...
    group: The kind that selectors use: `'attention'`, `'norms'`, ...
    path: Dotted path of the base leaf in `params`.
    shape: Shape of the whole base leaf.
    axes: For each axis, the field of the config that decides its length.
    stacked: Whether axis 0 is the layers of a tower that runs them by `nn.scan`
      (the vision tower).
    slot_axis: Axis of the base leaf along which it holds several projections.
    slot: Index of this projection along `slot_axis`.
    attention: `'local'` or `'global'`: the attention of its layer, None outside
      the text tower's layers.
    live: False if the model never uses its output.
    hf_name: Name within Hugging Face's language model (for towers: within the
      model around it). `*` is the layer number of a stacked leaf, whose layers
      are separate modules there.
  """

  tower: str = 'text'
  layer: int | None
  projection: str
  group: str
  path: str
  shape: tuple[int, ...]
  axes: Axes
  stacked: bool = False
  slot_axis: int | None = None
  slot: int | None = None
  attention: str | None = None
  live: bool = True
  hf_name: str

  @property
  def name(self) -> str:
    """Short unique name."""
    return self.path

  @property
  def module_path(self) -> str:
    """Dotted path of the leaf's own scope, under which its LoRA leaves stand.

    `layer_0.attn.q_einsum.w` -> `layer_0.attn.q_einsum`, but
    `layer_0.mlp.linear` -> `layer_0.mlp`: the MLP's linears are bare arrays.
    """
    return self.path.rpartition('.')[0]

  @property
  def checkpoint_path(self) -> _trees.Path:
    """Path in gemma's checkpoints, as `_names.canonical` spells it."""
    return _names.canonical(tuple(self.path.split('.')))

  @property
  def is_table(self) -> bool:
    """Whether rows of the leaf are looked up."""
    return self.path in _names.TABLES

  @property
  def is_routed(self) -> bool:
    """Whether the leaf belongs to routed experts."""
    return self.group == 'experts'

  @property
  def is_router(self) -> bool:
    """Whether it is the linear that chooses experts."""
    return self.group == 'router'

  @property
  def is_selected_by_name_only(self) -> bool:
    """Whether no kind of `g4.targets` includes it: it is a group of its own."""
    return self.group == self.projection

  @property
  def layers(self) -> tuple[int, ...]:
    """Numbers of the layers that the leaf belongs to."""
    if self.stacked:
      return tuple(range(self.shape[0]))
    return () if self.layer is None else (self.layer,)

  def starred(self, path: str) -> str:
    """A path of this row with `*` for the layer: `layer_*.attn.q_einsum`."""
    return path if self.layer is None else starred(path)

  @property
  def hf_names(self) -> tuple[str, ...]:
    """`hf_name` of each layer of a stacked leaf, else the one there is."""
    if not self.stacked:
      return (self.hf_name,)
    return tuple(self.hf_name.replace('*', str(n)) for n in self.layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Row):
  """One projection of one layer.

  Example: `v` of a local layer of E2B, whose weight is in `kv_einsum`:

  ```python
  Linear(
      tower='text', layer=4, projection='v', group='attention',
      path='layer_4.attn.kv_einsum.w', shape=(2, 1, 1536, 256),
      axes=(None, 'num_kv_heads', 'embed_dim', 'head_dim or global_key_size'),
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
    batch_axes: Axes along which each index is a separate linear: experts, and
      the layers of a stacked weight, whose A and B are stacked too.
    own_scopes: How many scopes hold only this weight: `q_einsum` of
      `layer_4.attn.q_einsum.w`, and none of a bare array.
  """

  in_axes: tuple[int, ...]
  out_axes: tuple[int, ...]
  batch_axes: tuple[int, ...] = ()
  own_scopes: int = 1

  @property
  def lora_path(self) -> str:
    """Dotted path of the `{'a': ..., 'b': ...}` that adapts this projection."""
    return f'{self.module_path}.{_trees.LORA_KEY}.{self.projection}'

  @property
  def name(self) -> str:
    """Short unique name: `layer_4.attn.v`, `layer_0.mlp.gate`."""
    around = self.path.split('.')[: -1 - self.own_scopes]
    return '.'.join((*around, self.projection))

  @property
  def weight_name(self) -> str:
    """Name of the module, or of a bare array: `q_einsum`, `gating_einsum`."""
    return self.path.split('.')[-2 if self.own_scopes else -1]

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
        axes=self.axes[1:],
        in_axes=tuple(axis - 1 for axis in self.in_axes),
        out_axes=tuple(axis - 1 for axis in self.out_axes),
        batch_axes=tuple(axis - 1 for axis in self.batch_axes[1:]),
        slot_axis=slot_axis,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf(Row):
  """A leaf that is not a linear.

  `group` is `'norms'`, `'embeddings'`, `'scalars'` or `'others'`. `hf_name` is
  a module that has only a `weight` (`norm`), or a tensor
  (`layers.0.layer_scalar`).

  Attributes:
    is_hf_module: Whether `hf_name` is a module.
  """

  is_hf_module: bool

  @property
  def name(self) -> str:
    """Short unique name: `layer_4.pre_attention_norm`, `final_norm`."""
    return self.path.removesuffix('.scale').removesuffix('.kernel')

  @property
  def is_kernel(self) -> bool:
    """Whether it is a convolution, `[*window, in, out]`.

    Its tensor in Hugging Face is `[out, in, *window]`.
    """
    return self.path.endswith('.kernel')

  @property
  def hf_tensors(self) -> tuple[str, ...]:
    """Hugging Face's tensors: one, or one per layer of a stacked leaf."""
    suffix = '.weight' if self.is_hf_module else ''
    return tuple(f'{name}{suffix}' for name in self.hf_names)


def starred(path: str) -> str:
  """A path with `*` for the number of any layer: `layer_*.attn.q_einsum`."""
  return re.sub(r'(?<=layer_)\d+(?=\.)|(?<=layers_)\d+(?=\.)', '*', path)
