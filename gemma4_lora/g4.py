"""Public API of gemma4_lora.

```python
from gemma4_lora import g4
```

| namespace | what is in it |
|---|---|
| `g4.nn` | `LoRA`, the model; summary, check, merge |
| `g4.targets` | rules: which projections LoRA adapts |
| `g4.quant` | formats of a quantised base |
| `g4.ckpts` | restore a base, save and resume a run, LoRA alone |
| `g4.hf` | PEFT folders |
| `g4.data` | tasks from dataset rows to tokens and masks; datasets |
| `g4.losses` | losses and metrics that need no logits in memory |
| `g4.optim` | optimizers |
| `g4.train` | the train step |
| `g4.evals` | evaluation with LoRA on and off; BLEU |
| `g4.tpu` | the planner: does a step fit on a chip? |
| `g4.testing` | tiny models, checkpoints, tokenizer and data |

`help(g4.nn)` lists the names of a namespace, `help(g4.nn.LoRA)` explains one. Importing
`g4` imports no jax: each namespace loads on first use, as in `kauldron.kd` and `gemma.gm`.
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
