"""Public API of gemma4_lora.

```python
from gemma4_lora import g4
```

Importing it imports no jax: each namespace loads on first use, as in
`kauldron.kd` and `gemma.gm`.
"""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
  from gemma4_lora import ckpts
  from gemma4_lora import data
  from gemma4_lora import evals
  from gemma4_lora import hf
  from gemma4_lora import losses
  from gemma4_lora import nn
  from gemma4_lora import optim
  from gemma4_lora import quant
  from gemma4_lora import targets
  from gemma4_lora import testing
  from gemma4_lora import tpu
  from gemma4_lora import train
