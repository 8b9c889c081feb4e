# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.13.0",
#   "transformers==5.23.0",
#   "peft==0.21.2",
#   "safetensors==0.8.0",
#   "numpy>=2",
# ]
# ///
"""transformers and PEFT, in an environment of their own: no test imports this.

```sh
uv run tests/lib/peft_reference.py models OUT    # tiny models, with logits
uv run tests/lib/peft_reference.py adapters OUT  # adapters of those in testdata
uv run tests/lib/peft_reference.py verify CASES  # of tests/lib/peft_cases.py
```

`models` and `adapters` write what `tests/testdata/hf` has, from other random
numbers: copy the folders there to replace it. `verify` loads folders that
`g4.hf.save_peft` wrote, and fails unless PEFT takes every tensor, warns of
nothing, and computes the logits that stand beside them; and whole models that
`gemma4_lora fuse --format=hf` wrote, of which transformers must do the same.
"""

import argparse
import json
import pathlib
import warnings

import numpy as np
import peft
import safetensors.torch
import torch
import transformers

_TESTDATA = pathlib.Path(__file__).parents[1] / 'testdata' / 'hf'
_BASES = ('e', 'dense', 'moe', 'e_mm')

_ATTENTION = ['q_proj', 'k_proj', 'v_proj', 'o_proj']
_MLP = ['gate_proj', 'up_proj', 'down_proj']
_PER_LAYER = [
    'per_layer_input_gate',
    'per_layer_projection',
    'per_layer_model_projection',
]
_LINEARS = _ATTENTION + _MLP
_E_LINEARS = _LINEARS + _PER_LAYER
_BOTH = ['experts.gate_up_proj', 'experts.down_proj']

# Base, and fields of `LoraConfig` besides r=4, lora_alpha=8.
_ADAPTERS = {
    'ad_e': ('e', dict(target_modules=_E_LINEARS)),
    'ad_e_dora': ('e', dict(target_modules=_E_LINEARS, use_dora=True)),
    'ad_e_mm': (
        'e_mm',
        dict(target_modules=rf'.*language_model.*\.({"|".join(_E_LINEARS)})'),
    ),
    'ad_dense': ('dense', dict(target_modules=_LINEARS)),
    'ad_dense_rslora_patterns': (
        'dense',
        dict(
            target_modules=_LINEARS,
            use_rslora=True,
            rank_pattern={'q_proj': 8, r'layers\.1\..*down_proj': 2},
            alpha_pattern={'v_proj': 32},
        ),
    ),
    'ad_moe': ('moe', dict(target_modules=_LINEARS, target_parameters=_BOTH)),
    'ad_moe_gu': ('moe', dict(target_modules=[], target_parameters=_BOTH[:1])),
    'ad_moe_dn': ('moe', dict(target_modules=[], target_parameters=_BOTH[1:])),
    'ad_e_full': (
        'e',
        dict(
            target_modules=['q_proj', 'v_proj'],
            modules_to_save=[
                'model.norm',
                'model.layers.0.input_layernorm',
                'model.layers.1.mlp.down_proj',
                'model.layers.2.self_attn.k_proj',
                'embed_tokens',
                'embed_tokens_per_layer',
            ],
            ensure_weight_tying=True,
        ),
    ),
    # Not in testdata: more of what users write.
    'x_router': (
        'moe',
        dict(
            target_modules=['router.proj', 'q_proj'],
            rank_pattern={'router.proj': 2},
        ),
    ),
    'x_moe_reversed': (
        'moe',
        dict(
            target_modules=r'.*self_attn\.[qv]_proj',
            target_parameters=_BOTH[::-1],
            rank_pattern={r'layers\.2\.experts\.gate_up_proj': 6},
            use_rslora=True,
        ),
    ),
    'x_moe_some_layers': (
        'moe',
        dict(
            target_modules=[],
            target_parameters=[
                'layers.1.experts.down_proj',
                'layers.4.experts.gate_up_proj',
                'layers.4.experts.down_proj',
            ],
        ),
    ),
    'x_layers': (
        'dense',
        dict(
            target_modules=['q_proj', 'down_proj'],
            layers_to_transform=[0, 3, 5],
            use_dora=True,
            use_rslora=True,
            alpha_pattern={r'layers\.3\.self_attn\.q_proj': 5},
        ),
    ),
    'x_exclude': (
        'e_mm',
        dict(
            target_modules=_LINEARS,
            exclude_modules=r'.*(vision_tower|layers\.3\.).*',
        ),
    ),
    'x_vision': (
        'e_mm',
        dict(
            target_modules=(
                r'.*vision_tower\.encoder.*\.linear|.*embedding_projection'
                r'|.*patch_embedder\.input_proj|.*language_model.*\.o_proj'
            )
        ),
    ),
    'x_all_linear': ('moe', dict(target_modules='all-linear')),
}


def models(out: pathlib.Path) -> None:
  """Writes tiny models of random parameters, none trivial."""
  for i, name in enumerate(_BASES):
    torch.manual_seed(i)
    config = transformers.AutoConfig.from_pretrained(_TESTDATA / name)
    model = _class(name)(config).float().eval()
    _randomise(model)
    model.save_pretrained(out / name)
    tokens = torch.randint(1, 250, (2, 24))
    np.savez(
        out / f'{name}.npz',
        tokens=tokens.numpy().astype(np.int32),
        logits=_logits(model, tokens),
    )


def _randomise(model: torch.nn.Module) -> None:
  """Scales by the fan-in, so that logits stay where their cap does not bind."""
  with torch.no_grad():
    # What files hold: other buffers follow from the config.
    for name, x in model.state_dict().items():
      if name.endswith(('_min', '_max')):
        x.fill_(-2.0 if name.endswith('_min') else 2.0)
      elif x.ndim < 2:
        x.uniform_(0.5, 1.5)
      else:
        x.normal_(std=x.shape[-1] ** -0.5)


def adapters(out: pathlib.Path, bases: pathlib.Path) -> None:
  """Writes adapters with random B, and logits."""
  for i, (name, (base, fields)) in enumerate(_ADAPTERS.items()):
    torch.manual_seed(100 + i)
    config = peft.LoraConfig(r=4, lora_alpha=8, task_type='CAUSAL_LM', **fields)
    model = peft.get_peft_model(_load(base, bases), config).eval()
    with torch.no_grad():
      for key, x in model.named_parameters():
        if 'lora_B' in key:
          x.normal_(std=0.1)
        elif 'lora_magnitude' in key or 'modules_to_save' in key:
          x.mul_(torch.empty_like(x).uniform_(0.8, 1.2))
    model.peft_config['default'].base_model_name_or_path = f'tiny-gemma4/{base}'
    model.save_pretrained(out / name, save_embedding_layers=False)
    (out / name / 'README.md').unlink()
    tokens = torch.tensor(np.load(bases / f'{base}.npz')['tokens']).long()
    np.savez(
        out / f'{name}.npz',
        base=base,
        tokens=tokens.numpy().astype(np.int32),
        logits=_logits(model, tokens),
        num_params=sum(
            x.numel() for x in model.parameters() if x.requires_grad
        ),
    )
    print(name)


def verify(cases: pathlib.Path) -> None:
  """Loads folders of ours, and compares tensors and logits."""
  failed = []
  for path in sorted(cases.iterdir()):
    if not (path / 'case.npz').exists():
      continue
    case = np.load(path / 'case.npz')
    problems = _verify(path, case)
    failed += [f'{path.name}: {x}' for x in problems]
  if failed:
    raise SystemExit('\n'.join(failed))


def _verify(path: pathlib.Path, case) -> list[str]:
  """Returns what is wrong with one folder."""
  base = str(case['base'])
  is_fused = not (path / 'adapter_config.json').exists()
  model, problems = (_load_fused if is_fused else _load_peft)(path, base)
  tokens = torch.tensor(case['tokens']).long()
  logits = _logits(model, tokens)
  error = float(np.abs(logits - case['logits']).max())
  size = float(np.abs(case['logits']).max())
  effect = float(np.abs(logits - _logits(_load(base), tokens)).max())
  print(
      f'{path.name}: logits differ by {error:.1e}, {error / size:.1e} of the'
      f' largest; from the base {effect:.1g}'
  )
  if not error <= case['atol']:
    problems.append(f'logits differ by {error}')
  if effect < 0.1 and 'vision' not in path.name:
    problems.append('no effect')
  return problems


def _load_fused(path: pathlib.Path, base: str):
  """Loads a whole model; all its tensors must be the model's."""
  model, info = _class(base).from_pretrained(
      path, dtype=torch.float32, output_loading_info=True
  )
  problems = [f'{k}: {sorted(v)[:4]}' for k, v in info.items() if v]
  return model.eval(), problems


def _load_peft(path: pathlib.Path, base: str):
  """Loads a PEFT folder, of which nothing may be left out."""
  config = json.loads((path / 'adapter_config.json').read_text())
  problems = []
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    model = peft.PeftModel.from_pretrained(_load(base), path).eval()
  for warning in caught:
    # PEFT heeds patterns of parameters, but looks for them among modules: it
    # warns of those in a folder without modules (0.21.2).
    if 'were ignored' in str(warning.message) and not config['target_modules']:
      continue
    if issubclass(warning.category, (UserWarning, RuntimeWarning)):
      problems.append(f'warns: {warning.message}')
  file = safetensors.torch.load_file(path / 'adapter_model.safetensors')
  state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
  if state.keys() != file.keys():
    problems.append(f'other tensors: {sorted(state.keys() ^ file.keys())[:4]}')
  else:
    differ = [k for k in file if not torch.equal(state[k], file[k])]
    problems += [f'other values: {differ[:4]}'] if differ else []
  return model, problems


def _load(base: str, bases: pathlib.Path = _TESTDATA) -> torch.nn.Module:
  return _class(base).from_pretrained(bases / base, dtype=torch.float32).eval()


def _class(base: str) -> type:
  config = json.loads((_TESTDATA / base / 'config.json').read_text())
  return getattr(transformers, config['architectures'][0])


def _logits(model: torch.nn.Module, tokens: torch.Tensor) -> np.ndarray:
  with torch.no_grad():
    return model(input_ids=tokens).logits.numpy()


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('what', choices=['models', 'adapters', 'verify'])
  parser.add_argument('folder', type=pathlib.Path)
  args = parser.parse_args()
  if args.what == 'verify':
    verify(args.folder)
  else:
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.what == 'models':
      models(args.folder)
    else:
      adapters(args.folder, _TESTDATA)
