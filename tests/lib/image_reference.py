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
"""Tiny models that read images, by transformers and PEFT: no test imports this.

```sh
uv run tests/lib/image_reference.py OUT
```

writes what `tests/testdata/hf` has of `e_images`, `dense_images` and
`unified_images`, from other random numbers: copy the files there to replace it. `tests/lib/image_cases.py`
reads it.
"""

import argparse
import json
import pathlib
from typing import Any

import numpy as np
import peft
import safetensors.torch
import torch
import transformers

_PATCH_SIZE, _POOLING = 2, 3
_MAX_PATCHES = 36
# Width and height in patches. Padding: none, some, and most of the patches.
_GRIDS = ((6, 6), (9, 3), (3, 3))
_IMAGE_TOKEN = 60

_FULL = 'full_attention'
_SLIDING = 'sliding_attention'
_VISION = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    patch_size=_PATCH_SIZE,
    pooling_kernel_size=_POOLING,
    position_embedding_size=12,
)
_TEXT = dict(
    vocab_size=64,
    vocab_size_per_layer_input=64,
    hidden_size=24,
    intermediate_size=32,
    num_attention_heads=2,
    head_dim=8,
    num_kv_shared_layers=0,
    sliding_window=8,
    max_position_embeddings=512,
    final_logit_softcapping=30.0,
    use_double_wide_mlp=False,
)
# Like E2B: clipped linears. Like 31B: standardised soft tokens, which attend to
# each other in the text, and keys that are values.
_MODELS = {
    'e_images': dict(
        vision=dict(use_clipped_linears=True, standardize=False),
        text=dict(
            hidden_size_per_layer_input=8,
            num_key_value_heads=1,
            layer_types=[_FULL],
            attention_k_eq_v=False,
            per_layer_config={'0': {'head_dim': 16}},
        ),
    ),
    'dense_images': dict(
        vision=dict(use_clipped_linears=False, standardize=True),
        text=dict(
            hidden_size_per_layer_input=0,
            num_key_value_heads=2,
            layer_types=[_SLIDING, _SLIDING, _FULL],
            attention_k_eq_v=True,
            per_layer_config={'2': {'head_dim': 16, 'num_key_value_heads': 1}},
            use_bidirectional_attention='vision',
        ),
    ),
    # Like 12B, which has no tower.
    'unified_images': dict(
        vision=None,
        text=dict(
            num_key_value_heads=2,
            layer_types=[_SLIDING, _SLIDING, _FULL],
            attention_k_eq_v=True,
            per_layer_config={'2': {'head_dim': 16, 'num_key_value_heads': 1}},
            use_bidirectional_attention='vision',
        ),
    ),
}
_EMBEDDER = dict(
    patch_size=_PATCH_SIZE,
    pooling_kernel_size=_POOLING,
    mm_embed_dim=20,
    mm_posemb_size=8,
    output_proj_dims=20,
)
_IDS = dict(
    image_token_id=_IMAGE_TOKEN,
    video_token_id=59,
    audio_token_id=63,
    boi_token_id=61,
    eoi_token_id=62,
    boa_token_id=57,
    eoa_token_index=58,
)
_ADAPTER = dict(
    r=2,
    lora_alpha=4,
    target_modules=(
        r'.*vision_tower\.encoder.*\.linear|.*embed_vision.*embedding_projection'
        r'|.*patch_embedder\.input_proj|.*patch_dense|.*language_model.*\.q_proj'
    ),
)


def _model(name: str) -> transformers.PreTrainedModel:
  """A model of the kind that `tests/testdata/hf` has."""
  fields = _MODELS[name]
  text = _text_config(fields['text'])
  if fields['vision'] is None:
    config = transformers.Gemma4UnifiedConfig(
        text_config={
            k: v for k, v in text.items() if 'per_layer_input' not in k
        },
        vision_config=_EMBEDDER,
        audio_config=dict(audio_embed_dim=6),
        **_IDS,
    )
    return transformers.Gemma4UnifiedForConditionalGeneration(config)
  config = transformers.Gemma4Config(
      text_config=text,
      vision_config=_VISION | fields['vision'],
      audio_config=None,
      **_IDS,
  )
  return transformers.Gemma4ForConditionalGeneration(config)


def _text_config(fields: dict[str, Any]) -> dict[str, Any]:
  num_layers = len(fields['layer_types'])
  return _TEXT | fields | {'num_hidden_layers': num_layers}


def _randomise(model: torch.nn.Module) -> None:
  """Draws values of about 1 behind each linear; clips bind for some of them."""
  with torch.no_grad():
    # What files hold: other buffers follow from the config.
    for name, x in model.state_dict().items():
      if name.endswith(('_min', '_max')):
        x.fill_(-1.5 if name.endswith('_min') else 1.5)
      elif name.endswith(('q_norm.weight', 'k_norm.weight')):
        x.uniform_(0.3, 0.7)  # Larger scores would amplify rounding.
      elif x.ndim < 2:
        x.uniform_(0.5, 1.5)
      else:
        x.normal_(std=x.shape[-1] ** -0.5)


def _patches() -> tuple[torch.Tensor, torch.Tensor]:
  """Three images, whose padding patches are as far from zero as real ones."""
  patches = torch.rand((len(_GRIDS), _MAX_PATCHES, 3 * _PATCH_SIZE**2))
  positions = torch.full((len(_GRIDS), _MAX_PATCHES, 2), -1)
  for i, (width, height) in enumerate(_GRIDS):
    grid = np.stack(np.meshgrid(range(width), range(height)), axis=-1)
    positions[i, : width * height] = torch.tensor(grid.reshape(-1, 2))
  return patches, positions


def _inputs(model, patches, positions) -> dict[str, torch.Tensor]:
  """Two images in the first sequence, one in the second; text around them."""
  tokens = torch.randint(3, 50, (2, 16))
  tokens[0, 2:6] = tokens[0, 8:11] = tokens[1, 4] = _IMAGE_TOKEN
  kinds = (tokens == _IMAGE_TOKEN).int()
  inputs = dict(
      input_ids=tokens,
      mm_token_type_ids=kinds,
      pixel_values=patches,
      image_position_ids=positions,
  )
  if not isinstance(model, transformers.Gemma4UnifiedForConditionalGeneration):
    return inputs
  patches, positions = _merged(patches, positions)
  # As `generate` has it: within images, local layers attend to both sides. Its
  # `forward` alone does so on global layers too, in 5.24.
  masks = model.create_masks_for_generate(
      config=model.config,
      inputs_embeds=torch.zeros((*tokens.shape, 1)),
      attention_mask=None,
      cache=None,
      position_ids=None,
      mm_token_type_ids=kinds,
  )
  return inputs | dict(
      pixel_values=patches,
      image_position_ids=positions,
      attention_mask=masks,
  )


def _merged(patches, positions) -> tuple[torch.Tensor, torch.Tensor]:
  """Patches of three times the side, of the same pictures; padded again.

  The picture is put together and cut anew.
  """
  side = _POOLING * _PATCH_SIZE
  squares = torch.zeros((len(_GRIDS), _MAX_PATCHES // _POOLING**2, 3 * side**2))
  places = torch.full((*squares.shape[:2], 2), -1)
  for i, (width, height) in enumerate(_GRIDS):
    picture = torch.zeros((height * _PATCH_SIZE, width * _PATCH_SIZE, 3))
    for patch, (x, y) in zip(patches[i], positions[i].tolist(), strict=True):
      if x >= 0:
        rows = slice(y * _PATCH_SIZE, (y + 1) * _PATCH_SIZE)
        columns = slice(x * _PATCH_SIZE, (x + 1) * _PATCH_SIZE)
        picture[rows, columns] = patch.reshape(_PATCH_SIZE, _PATCH_SIZE, 3)
    grid = [
        (x, y)
        for y in range(height // _POOLING)
        for x in range(width // _POOLING)
    ]
    for n, (x, y) in enumerate(grid):
      square = picture[y * side : (y + 1) * side, x * side : (x + 1) * side]
      squares[i, n] = square.flatten()
      places[i, n] = torch.tensor((x, y))
  return squares, places


def _soft_tokens(model, inputs) -> np.ndarray:
  """All images' output of the tower, `[N, D]`, without padding."""
  positions = inputs['image_position_ids']
  with torch.no_grad():
    out = model.get_image_features(
        inputs['pixel_values'], positions, return_dict=True
    ).last_hidden_state
  if out.ndim == 3:  # With padding.
    out = out[(positions != -1).all(-1)]
  return out.numpy()


def _loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
  """Mean cross-entropy of each next token that is text."""
  wanted = tokens[:, 1:].clone()
  wanted[wanted == _IMAGE_TOKEN] = -100
  return torch.nn.functional.cross_entropy(
      logits[:, :-1].flatten(0, 1), wanted.flatten()
  )


def write(name: str, out: pathlib.Path) -> None:
  """Writes one model, an adapter of it, and what they compute."""
  torch.manual_seed(len(name))
  model = _model(name).float().eval()
  _randomise(model)
  model.save_pretrained(out / name)
  (out / name / 'generation_config.json').unlink(missing_ok=True)
  patches, positions = _patches()
  inputs = _inputs(model, patches, positions)
  with torch.no_grad():
    base = dict(
        soft_tokens=_soft_tokens(model, inputs),
        logits=model(**inputs).logits.numpy(),
    )

  use_dora = name == 'dense_images'
  config = peft.LoraConfig(task_type='CAUSAL_LM', use_dora=use_dora, **_ADAPTER)
  adapted = peft.get_peft_model(model, config).eval()
  with torch.no_grad():
    for key, x in adapted.named_parameters():
      if 'lora_B' in key:
        x.normal_(std=0.2)
      elif 'lora_magnitude' in key:
        x.mul_(torch.empty_like(x).uniform_(0.8, 1.2))
  adapted.peft_config['default'].base_model_name_or_path = f'tiny-gemma4/{name}'
  folder = out / f'ad_{name}'
  adapted.save_pretrained(folder, save_embedding_layers=False)
  (folder / 'README.md').unlink()
  logits = adapted(**inputs).logits
  _loss(logits, inputs['input_ids']).backward()
  gradients = {
      key: x.grad for key, x in adapted.named_parameters() if x.requires_grad
  }
  # By the names of the adapter's own tensors.
  safetensors.torch.save_file(
      peft.get_peft_model_state_dict(
          adapted, gradients, save_embedding_layers=False
      ),
      folder / 'gradients.safetensors',
  )
  np.savez(
      out / f'{name}.npz',
      tokens=inputs['input_ids'].numpy().astype(np.int32),
      patches=patches.numpy(),
      positions=positions.numpy().astype(np.int8),
      **base,
  )
  np.savez(
      out / f'ad_{name}.npz',
      soft_tokens=_soft_tokens(adapted.base_model.model, inputs),
      logits=logits.detach().numpy(),
  )
  config = json.loads((folder / 'adapter_config.json').read_text())
  print(name, len(gradients), 'gradients', config['peft_version'])


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('folder', type=pathlib.Path)
  args = parser.parse_args()
  args.folder.mkdir(parents=True, exist_ok=True)
  for model_name in _MODELS:
    write(model_name, args.folder)
