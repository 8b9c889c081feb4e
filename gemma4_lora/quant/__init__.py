"""Formats in which the frozen base is held: `quantize=` of `g4.nn.LoRA`.

| format | a weight | scales | bits per weight |
|---|---|---|---|
| `'int8'`, `Int8()` | 8-bit integer | float32 per output channel | 8.0 |
| `'int4'`, `Int4(group_size=32)` | 4-bit integer | bfloat16 per group | 4.5 |
| `'nf4'`, `NF4(group_size=64)` | 4-bit NormalFloat | float32 per group | 4.5 |
| `NF4(double=True)` | the same | int8 per group | 4.2 |

`quantize=` also takes a list of formats; the first that selects a part decides:

```python
g4.nn.LoRA(
    rank=16,
    quantize=[g4.quant.Int8('embeddings'), g4.quant.Int4()],
    model=...,
)
```
"""

from typing import Any

from gemma4_lora.quant import _formats
from gemma4_lora.quant._arrays import dequantize
from gemma4_lora.quant._arrays import is_quantized
from gemma4_lora.quant._arrays import quantize
from gemma4_lora.quant._format import Format
from gemma4_lora.quant._int4 import Int4
from gemma4_lora.quant._int8 import Int8
from gemma4_lora.quant._nf4 import NF4

__all__ = [
    'dequantize',
    'Format',
    'Int4',
    'Int8',
    'is_quantized',
    'NF4',
    'quantize',
]

# Public before 0.1, and callable in a config with JSON values: configs that
# were saved with it still resolve. Other removed names took arrays or models'
# configs, which no config can hold.
_IN_SAVED_CONFIGS = {'normalize': _formats.normalize}


def __getattr__(name: str) -> Any:
  if name in _IN_SAVED_CONFIGS:
    return _IN_SAVED_CONFIGS[name]
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
