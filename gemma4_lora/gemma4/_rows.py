"""What every row of a table of parameters has: linears and other leaves."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """Where a parameter, or a part of one, stands.

  Attributes:
    tower: `'text'`, `'vision'` or `'audio'`.
    layer: Layer number, None for what stands outside the layers and for what is
      stacked.
    projection: Logical name: `'q'`, `'gate'`, `'pre_attention_norm'`, ...
    group: What selectors go by: `'attention'`, `'norms'`, ...
    path: Dotted path of the base leaf in `params`.
    shape: Shape of the whole base leaf.
    stacked: Whether axis 0 is the layers of a tower that runs them by `nn.scan`
      (the vision tower).
    slot_axis: Axis of the base leaf along which projections are packed.
    slot: Index of this projection along `slot_axis`.
    attention: `'local'` or `'global'`: the attention of its layer, None outside
      the text tower's layers.
    live: False where the model never uses the result.
    hf_name: Name within Hugging Face's language model (for towers: within the
      model around it). `*` stands for the layer of a stacked leaf, whose layers
      are modules of their own there.
  """

  tower: str = 'text'
  layer: int | None
  projection: str
  group: str
  path: str
  shape: tuple[int, ...]
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


def starred(path: str) -> str:
  """A path with `*` for the number of any layer: `layer_*.attn.q_einsum`."""
  return re.sub(r'(?<=layer_)\d+(?=\.)|(?<=layers_)\d+(?=\.)', '*', path)
