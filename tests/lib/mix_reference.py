# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "peft==0.21.2", "numpy>=2"]
# ///
"""Adapters that PEFT has mixed: no test imports this.

```sh
uv run tests/lib/mix_reference.py OUT
```

writes `mixed_by_peft.npz` to OUT: A and B of three adapters of one linear, and what
`add_weighted_adapter` makes of them. `tests/nn/mix_methods_test.py` reads it.
"""

import argparse
import pathlib

import numpy as np
import peft
import torch

_WEIGHTS = {'one': 0.7, 'two': -0.4, 'three': 1.5}
_DENSITY = 0.6
_METHODS = {
    'cat': {},
    'linear': {},
    'svd': {'svd_rank': 2},
    'ties': {'density': _DENSITY},
    'ties_frequency': {
        'density': _DENSITY,
        'majority_sign_method': 'frequency',
    },
    'ties_svd': {'density': _DENSITY, 'svd_rank': 4},
    'magnitude_prune': {'density': _DENSITY},
    'magnitude_prune_svd': {'density': _DENSITY, 'svd_rank': 4},
}


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('out', type=pathlib.Path)
  args = parser.parse_args()
  torch.manual_seed(3)
  base = torch.nn.Sequential(torch.nn.Linear(12, 10, bias=False))
  model, saved = None, {}
  for i, name in enumerate(_WEIGHTS):
    config = peft.LoraConfig(
        r=3, lora_alpha=5 + i, use_rslora=i == 2, target_modules=['0']
    )
    if model is None:
      model = peft.get_peft_model(base, config, adapter_name=name)
    else:
      model.add_adapter(name, config)
    layer = model.base_model.model[0]
    for side in (layer.lora_A, layer.lora_B):
      torch.nn.init.normal_(side[name].weight)
    saved[f'{name}.a'] = layer.lora_A[name].weight.detach().numpy()
    saved[f'{name}.b'] = layer.lora_B[name].weight.detach().numpy()
    saved[f'{name}.scale'] = np.asarray(layer.scaling[name])
  for method, kwargs in _METHODS.items():
    model.add_weighted_adapter(
        list(_WEIGHTS),
        list(_WEIGHTS.values()),
        method,
        combination_type=method.removesuffix('_frequency'),
        **kwargs,
    )
    saved[f'{method}.delta'] = layer.get_delta_weight(method).detach().numpy()
  np.savez(args.out / 'mixed_by_peft.npz', **saved)


if __name__ == '__main__':
  main()
