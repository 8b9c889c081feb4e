"""Sizes of the models that benchmarks are about: E2B's, and smaller ones."""

import dataclasses
import json
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
  """A model with E2B's features, and the batch that it is trained on.

  The defaults are E2B's own.

  Attributes:
    num_layers: All but each `period`-th of them attend locally.
    period: As above.
    width: Of the residual stream. MLPs are 4 times as wide, 8 times where keys
      and values are shared.
    num_heads: Of queries; one of keys and values.
    head_dim: Twice that in global layers.
    per_layer_dim: Of the per-layer inputs.
    vocabulary: In tokens.
    window: Of local layers, in tokens.
    dtype: Of the base and its activations.
    rank: Of LoRA, on all linears.
    batch: In sequences.
    length: In tokens.
  """

  num_layers: int = 35
  period: int = 5
  width: int = 1536
  num_heads: int = 8
  head_dim: int = 256
  per_layer_dim: int = 256
  vocabulary: int = 262144
  window: int = 512
  dtype: str = 'bfloat16'
  rank: int = 16
  batch: int = 1
  length: int = 512

  @property
  def num_shared(self) -> int:
    """Layers that share keys and values: 20 of 35, in whole periods."""
    return self.num_layers * 20 // 35 // self.period * self.period

  @property
  def is_global(self) -> list[bool]:
    """Of each layer."""
    return [(i + 1) % self.period == 0 for i in range(self.num_layers)]

  @property
  def model_flops(self) -> float:
    """What a LoRA step cannot do without, by hand.

    Each weight of a linear, forward and for the gradient of its input: 4 per
    token, the output head's too. A and B of LoRA: 6. Queries with the keys that
    they may see, and scores with values: 4 forward, 8 backward. Keys and values
    of layers that share them, norms and look-ups are not counted.
    """
    weights = self.width * self.vocabulary
    seen = 0.0
    projection = self.num_layers * self.per_layer_dim
    linears = [(self.width, projection)]
    for i, is_global in enumerate(self.is_global):
      is_shared = i >= self.num_layers - self.num_shared
      size = self.head_dim * (2 if is_global else 1)
      mlp = self.width * (8 if is_shared else 4)
      linears += [(self.width, self.num_heads * size)] * 2  # q; o's transpose.
      linears += [(self.width, size)] * (0 if is_shared else 2)
      linears += [(self.width, mlp)] * 3
      linears += [(self.width, self.per_layer_dim)] * 2
      window = self.length if is_global else self.window
      keys = sum(min(j + 1, window) for j in range(self.length)) / self.length
      seen += self.num_heads * size * keys
    weights += sum(x * y for x, y in linears)
    lora = self.rank * sum(x + y for x, y in linears)
    tokens = self.batch * self.length
    return tokens * (4 * weights + 6 * lora + 12 * seen)

  def to_json(self) -> str:
    return json.dumps(dataclasses.asdict(self))

  def model(self, **kwargs: Any) -> Any:
    """Returns gemma's model, for text."""
    from gemma import gm
    import jax.numpy as jnp

    from gemma4_lora.gemma4 import _upstream

    kwargs = {'tokens': 'batch.input', 'text_only': True} | kwargs
    model = gm.nn.Gemma4_E2B(dtype=jnp.dtype(self.dtype), **kwargs)
    sharing = _upstream.KVCacheSharingConfig(
        frac_shared_layers=self.num_shared / self.num_layers,
        share_global=True,
        share_local=True,
    )
    config = dataclasses.replace(
        model.config,
        attention_types=_upstream.attention_types(self.is_global),
        embed_dim=self.width,
        hidden_dim=4 * self.width,
        override_kv_shared_ffw_hidden=8 * self.width,
        num_heads=self.num_heads,
        head_dim=self.head_dim,
        global_key_size=2 * self.head_dim,
        per_layer_input_dim=self.per_layer_dim,
        num_embed=self.vocabulary,
        sliding_window_size=self.window,
        kv_cache_sharing_config=sharing if self.num_shared else None,
    )
    return model.clone(config=config)


def from_json(text: str) -> Size:
  return Size(**json.loads(text))


E2B = Size()
# A step takes a second on two cores; half of the parameters are per-layer
# embeddings, and the vocabulary is as large for its width, as in E2B.
CPU = Size(
    num_layers=10,
    width=256,
    num_heads=4,
    head_dim=64,
    per_layer_dim=64,
    vocabulary=32768,
    window=128,
    dtype='float32',
    batch=2,
)
# As deep as E2B, and small enough that a step is compiled in about a minute.
DEPTH = dataclasses.replace(
    CPU,
    num_layers=35,
    width=64,
    num_heads=2,
    head_dim=16,
    per_layer_dim=16,
    vocabulary=1024,
    window=32,
    batch=1,
    length=64,
)
# For tests.
TINY = dataclasses.replace(
    DEPTH, num_layers=2, period=2, width=32, window=8, rank=2, length=16
)
