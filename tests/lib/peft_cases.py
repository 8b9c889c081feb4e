"""Our side of `peft_reference.py`: no test, but what proves that PEFT agrees.

And transformers, for what `gemma4_lora fuse --format=hf` writes.

```sh
python -m tests.lib.peft_cases save CASES     # for `peft_reference.py verify`
python -m tests.lib.peft_cases compare OUT    # with what `adapters` wrote
```
"""

import argparse
import pathlib
import shutil
import tempfile

from gemma import peft as gemma_peft
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from gemma4_lora import _trees
from gemma4_lora import g4
from tests.lib import hf_reference
from tests.lib import random_params
from tests.lib import trained

Rule = g4.targets.Rule

# Base, arguments of `g4.nn.LoRA`, arguments of `save_peft`.
_CAUSAL = dict(base_model_class='Gemma4ForCausalLM')
CASES = {
    'e_text': ('e', dict(alpha=8), _CAUSAL),
    'e_rules': (
        'e',
        dict(
            alpha=12,
            targets=[
                Rule('q', layers='3:7', rank=2),
                Rule('attention', exclude='o', rank=5, alpha=3.5),
                Rule(['down', 'per_layer_inputs']),
            ],
        ),
        _CAUSAL,
    ),
    'e_dora_rslora': (
        'e',
        dict(
            use_dora=True,
            use_rslora=True,
            targets=[Rule('mlp', layers=[0, 9], rank=7), 'attention'],
        ),
        _CAUSAL,
    ),
    'dense_pissa': ('dense', dict(init_lora_weights='pissa'), _CAUSAL),
    'dense_olora': ('dense', dict(init_lora_weights='olora'), _CAUSAL),
    'dense_global': (
        'dense',
        dict(targets=[Rule('attention', attention='global', rank=3), 'up']),
        _CAUSAL,
    ),
    'moe_router': (
        'moe',
        dict(targets=[Rule('router', rank=2), 'shared_expert']),
        _CAUSAL,
    ),
    'moe_router_alone': ('moe', dict(targets=['router']), _CAUSAL),
    'moe_experts': (
        'moe',
        dict(alpha=8, targets=[g4.targets.experts(rank=2), 'text']),
        _CAUSAL,
    ),
    'moe_experts_rslora': (
        'moe',
        dict(alpha=5, use_rslora=True, targets=['experts', 'q']),
        _CAUSAL,
    ),
    'moe_gate_alone': ('moe', dict(targets=['expert_gate']), _CAUSAL),
    'moe_up_and_down': (
        'moe',
        dict(targets=[Rule('expert_up', rank=3), 'expert_down']),
        _CAUSAL,
    ),
    'moe_gate_up_apart': (
        'moe',
        dict(
            alpha=7,
            targets=[Rule('expert_gate', rank=3), Rule('expert_up', rank=2)],
        ),
        _CAUSAL,
    ),
    'moe_some_layers': (
        'moe',
        dict(
            targets=[
                g4.targets.experts(layers=[1, 4], exclude='expert_up'),
                Rule('expert_up', layers=4),
            ]
        ),
        _CAUSAL,
    ),
    'e_in_full': (
        'e',
        dict(
            modules_to_save=[
                'embeddings',
                'final_norm',
                Rule(['k', 'gate', 'o'], layers=0),
            ]
        ),
        _CAUSAL,
    ),
    'mm_in_full': (
        'e_mm',
        dict(modules_to_save=['norms', Rule(['k', 'up'], layers=1)]),
        {},
    ),
    'mm_vision_dora': (
        'e_mm',
        dict(use_dora=True, targets=['vision', 'q']),
        {},
    ),
    'mm_text': ('e_mm', dict(alpha=8), {}),
    'mm_vision': (
        'e_mm',
        dict(
            targets=[
                'vision',
                Rule('multimodal_projections', rank=3),
                'patch_embedding',
                'v',
            ]
        ),
        {},
    ),
}
# Base, arguments of `g4.nn.LoRA`: fused into whole models.
FUSED = {
    'fused_e': ('e', dict(alpha=8)),
    'fused_dense_dora': ('dense', dict(use_dora=True)),
    'fused_moe': (
        'moe',
        dict(alpha=6, targets=['text', 'experts', 'router'], use_rslora=True),
    ),
    'fused_mm': (
        'e_mm',
        dict(targets='text', modules_to_save=['norms', Rule('k', layers=1)]),
    ),
}


def save(out: pathlib.Path) -> None:
  """Writes folders of random LoRA, and fused models, with our logits."""
  for name, (base, lora, arguments) in CASES.items():
    ref = hf_reference.load(base)
    model = g4.nn.LoRA(**({'rank': 4, 'model': ref.model} | lora))
    params, leaves = random_lora(model, ref.params)
    g4.hf.save_peft(
        out / name, model=model, params=leaves, overwrite=True, **arguments
    )
    np.savez(
        out / name / 'case.npz',
        base=base,
        tokens=ref.tokens,
        # The SVD that PEFT computes again is another one in its last bits.
        atol=2e-3 if 'pissa' in name else 5e-4,
        logits=logits(model, params, ref.tokens),
    )
    print(name)
  for name, (base, lora) in FUSED.items():
    _save_fused(out / name, base, lora)
    print(name)


def _save_fused(path: pathlib.Path, base: str, lora) -> None:
  """Writes a model with the LoRA of a run in it, and logits of the run's."""
  ref = hf_reference.load(base)
  model = g4.nn.LoRA(**({'rank': 4, 'model': ref.model} | lora))
  params, leaves = random_lora(model, ref.params)
  with tempfile.TemporaryDirectory() as tmp:
    run = trained.Run(
        pathlib.Path(tmp), model, base=hf_reference.TESTDATA / base
    )
    run.workdir = pathlib.Path(tmp) / 'trained'
    run.params = _trees.merge(run.params, leaves)
    run.save()
    shutil.rmtree(path, ignore_errors=True)
    run.export(path, format='hf')
  np.savez(
      path / 'case.npz',
      base=base,
      tokens=ref.tokens,
      atol=5e-4,
      logits=logits(model, params, ref.tokens),
  )


def compare(folder: pathlib.Path) -> None:
  """Compares our logits with PEFT's, for each adapter of a folder."""
  for path in sorted(folder.iterdir()):
    if not path.is_dir() or not path.with_suffix('.npz').exists():
      continue
    want = np.load(path.with_suffix('.npz'))
    if 'base' not in want:
      continue
    ref = hf_reference.load(str(want['base']))
    lora = g4.hf.load_peft(path, model=ref.model)
    params = gemma_peft.merge_params(ref.params, lora.params)
    error = np.abs(logits(lora.model, params, ref.tokens) - want['logits'])
    ours = sum(x.size for x in jax.tree.leaves(lora.params))
    print(
        f'{path.name}: logits differ by {error.max():.1e}; parameters'
        f' {ours:,}, PEFT {int(want["num_params"]):,}; {lora.model.targets}'
    )
    _compare_files(path, lora, str(want['base']))


def _compare_files(path, lora, base) -> None:
  """PEFT -> ours -> PEFT is bitwise."""
  again = path.parent / 'again' / path.name
  cls = 'Gemma4ForConditionalGeneration'
  if base != 'e_mm':
    cls = 'Gemma4ForCausalLM'
  g4.hf.save_peft(
      again,
      model=lora.model,
      params=lora.params,
      base_model_class=cls,
      overwrite=True,
  )
  x, y = (
      safetensors.numpy.load_file(p / 'adapter_model.safetensors')
      for p in (path, again)
  )
  if x.keys() != y.keys() or any(x[k].tobytes() != y[k].tobytes() for k in x):
    raise SystemExit(f'{path.name}: saved again, it differs.')


def random_lora(model, base):
  """Returns all parameters and the LoRA leaves, none trivial."""
  leaves = random_params.lora(model)
  params = gemma_peft.merge_params(base, leaves)
  if model.init_lora_weights in ('pissa', 'olora'):
    params = random_params.pending(params)
    params = g4.nn.init_from_base(model, jax.tree.map(jnp.asarray, params))
    base, start = gemma_peft.split_params(params)
    # As if trained: moved from where they started.
    leaves = jax.tree.map(lambda x, y: x + 0.1 * y, start, leaves)
    params = gemma_peft.merge_params(base, leaves)
  return params, leaves


def logits(model, params, tokens) -> np.ndarray:
  """Our logits."""
  apply = jax.jit(lambda p, t: model.apply({'params': p}, t).logits)
  return np.asarray(apply(params, jnp.asarray(tokens)))


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('what', choices=['save', 'compare'])
  parser.add_argument('folder', type=pathlib.Path)
  args = parser.parse_args()
  save(args.folder) if args.what == 'save' else compare(args.folder)
