"""Selectors: which linears LoRA adapts, and with what settings.

`targets=` of `g4.nn.LoRA` takes a rule or an ordered list of rules. The first
rule that matches a linear decides. A string is short for a rule:

| string | linears |
|---|---|
| `'text'` (the default) | every linear of the text model whose output is used, except experts and the router |
| `'attention'`, `'mlp'`, `'per_layer_inputs'` | those of one kind, in the text tower |
| `'experts'`, `'shared_expert'` | of a mixture of experts: the routed ones, and the dense MLP beside them |
| `'vision'`, `'audio'` | the layers of a tower |
| `'multimodal_projections'` | from the towers into the width of the text |
| `'q'`, `'v'`, `'gate'`, `'router'`, … | one projection, in every layer of the text tower |
| `'layer_3.attn.v'` | one projection of one layer |
| `'layer_*.attn.q_einsum'`, `'layer_*.mlp.**'` | by parameter path or name: `*` within a segment, `**` across segments |
| `'q_proj'`, `'all-linear'`, `'language_model.layers.3.self_attn.q_proj'` | by Hugging Face's names, as PEFT takes them |

```python
g4.nn.LoRA(
    rank=16,
    targets=[
        g4.targets.attention(layers='20:', rank=32),
        g4.targets.Rule(['gate', 'up'], attention='global'),
        'v',
    ],
    model=...,
)
```

`modules_to_save=` takes the same, for what is trained in full beside LoRA. It
takes parts that are not linears, too: `'norms'`, `'embeddings'`, `'scalars'`,
`'final_norm'`, `'layer_*.pre_attention_norm'`, and Hugging Face's `'norm'`,
`'embed_tokens'`, `'input_layernorm'`.

Linears whose output the model never uses (k and v of a KV-shared layer) are
left out; a rule that matches only these is an error. So is a rule that matches
nothing, or only linears of earlier rules. Only the router's own name selects
it.
"""

from collections.abc import Callable
from typing import Any

from gemma4_lora.targets import _full
from gemma4_lora.targets import _rule
from gemma4_lora.targets._rule import attention
from gemma4_lora.targets._rule import audio
from gemma4_lora.targets._rule import experts
from gemma4_lora.targets._rule import mlp
from gemma4_lora.targets._rule import multimodal_projections
from gemma4_lora.targets._rule import peft
from gemma4_lora.targets._rule import per_layer_inputs
from gemma4_lora.targets._rule import Rule
from gemma4_lora.targets._rule import shared_expert
from gemma4_lora.targets._rule import text
from gemma4_lora.targets._rule import vision

__all__ = [
    'attention',
    'audio',
    'experts',
    'mlp',
    'multimodal_projections',
    'peft',
    'per_layer_inputs',
    'Rule',
    'shared_expert',
    'text',
    'vision',
]

# Public before 0.1, and callable in a config with JSON values: configs that
# were saved with them still resolve. Other removed names took rows of the
# table, which no config can hold.
_IN_SAVED_CONFIGS: dict[str, Callable[..., Any]] = {
    'normalize': _rule.normalize,
    'normalize_full': _full.normalize_full,
}


def __getattr__(name: str) -> Any:
  if name in _IN_SAVED_CONFIGS:
    return _IN_SAVED_CONFIGS[name]
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
