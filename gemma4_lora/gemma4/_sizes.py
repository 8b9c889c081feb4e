"""The sizes of Gemma 4: one row each, from which all lists of them follow.

To add one, add its row here. If gemma has no class for it, write the class in a
file of its own and name that in the row, with `namespace='g4.nn'`: `g4.nn` then
has it, and `g4.testing` its tiny twin. Importing this imports no gemma.
"""

from collections.abc import Mapping
import dataclasses
import importlib
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
  """One released model.

  Attributes:
    name: The name of its class, and of its tiny twin in `g4.testing`.
    namespace: Where users find the class: `gm.nn` or `g4.nn`.
    module: Where the class is.
    features: What sets it apart, for the twin's docstring.
    tiny: Fields of the twin's config, of sizes that differ from one another.
  """

  name: str
  namespace: str = 'gm.nn'
  module: str = 'gemma.gm.nn'
  features: str
  tiny: Mapping[str, int] = dataclasses.field(hash=False)

  @property
  def cls(self) -> Any:
    """The class of the model."""
    return getattr(importlib.import_module(self.module), self.name)


SIZES = (
    Size(
        name='Gemma4_E2B',
        features='KV sharing, per-layer inputs, double-wide MLP, one KV head',
        tiny=dict(
            embed_dim=32,
            hidden_dim=48,
            override_kv_shared_ffw_hidden=96,
            num_heads=4,
            num_kv_heads=1,
            per_layer_input_dim=10,
        ),
    ),
    Size(
        name='Gemma4_E4B',
        features='KV sharing, per-layer inputs, MLPs of one width, two KV heads',
        tiny=dict(
            embed_dim=40,
            hidden_dim=56,
            num_heads=4,
            num_kv_heads=2,
            per_layer_input_dim=12,
        ),
    ),
    Size(
        name='Gemma4_31B',
        features='dense, k = v on global layers, fewer KV heads there',
        tiny=dict(
            embed_dim=40,
            hidden_dim=56,
            num_heads=8,
            num_kv_heads=4,
            num_global_kv_heads=2,
        ),
    ),
    Size(
        name='Gemma4_12B',
        namespace='g4.nn',
        module='gemma4_lora.gemma4._gemma4_12b',
        features='dense, k = v on global layers, one KV head there',
        tiny=dict(
            embed_dim=40,
            hidden_dim=56,
            num_heads=8,
            num_kv_heads=4,
            num_global_kv_heads=1,
        ),
    ),
    Size(
        name='Gemma4_26B_A4B',
        features='6 experts of which 2 run, beside a dense MLP; k = v',
        tiny=dict(
            embed_dim=40,
            hidden_dim=24,
            moe_dense_hidden_dim=24,
            num_heads=8,
            num_kv_heads=4,
            num_global_kv_heads=2,
            num_experts=6,
            expert_dim=20,
            top_k_experts=2,
        ),
    ),
)
NAMES = tuple(size.name for size in SIZES)


def listed() -> str:
  """Returns how users write the classes: `gm.nn.Gemma4_E2B, … or …`."""
  *names, last = (f'{size.namespace}.{size.name}' for size in SIZES)
  return f'{", ".join(names)} or {last}'
