"""Models that read images, and what transformers and PEFT compute with them.

`image_reference` made the files. The name map of the vision tower is written out
here a second time, by hand, like that of the text in `hf_reference`.
"""

import dataclasses
import functools
import pathlib
import shutil
import tempfile
from typing import Any

from flax import linen as nn
from gemma import peft
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gemma4_lora import g4
from gemma4_lora.gemma4 import _upstream
from tests.lib import hf_reference

# Images of each sequence: with no padding and some; with much, and none but it.
_IMAGES = ((0, 1), (2, None))
_SOFT_TOKENS = (4, 3, 1)
_MAX_PATCHES = 36
_IMAGE_TOKEN = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """A base model, a LoRA on it, and what transformers makes of two sequences.

  Attributes:
    base: The gemma model, in float32, with its vision tower.
    params: Its parameters, nested.
    lora: The model with LoRA.
    lora_params: The LoRA leaves.
    tokens: i32[2 16], with gemma's placeholders.
    images: Those of both sequences: of two, one, and a blank one.
    soft_tokens: f32[8 16], of all images, by the base model.
    logits: f32[2 16 64], by the base model.
    adapted_soft_tokens: The same, with LoRA.
    adapted_logits: The same, with LoRA.
    gradients: Of `loss`, like `lora_params`.
  """

  base: nn.Module
  params: dict[str, Any]
  lora: g4.nn.LoRA
  lora_params: dict[str, Any]
  tokens: jax.Array
  images: _upstream.PreprocessedVisionInput
  soft_tokens: np.ndarray
  logits: np.ndarray
  adapted_soft_tokens: np.ndarray
  adapted_logits: np.ndarray
  gradients: dict[str, Any]


@functools.cache
def load(name: str) -> Case:
  """Loads a case: `e_images`, `dense_images` or `unified_images`."""
  ref = hf_reference.load(name)
  encoder = ref.model.config.vision_encoder
  config = dataclasses.replace(
      ref.model.config,
      vision_encoder=encoder.clone(output_length=max(_SOFT_TOKENS)),
  )
  base = ref.model.clone(config=config)
  with np.load(hf_reference.TESTDATA / f'{name}.npz') as data:
    tokens = np.where(data['tokens'] == _IMAGE_TOKEN, -2, data['tokens'])
    images = _images(data['patches'], data['positions'])
    soft_tokens = data['soft_tokens']
  with np.load(hf_reference.TESTDATA / f'ad_{name}.npz') as adapted:
    adapted = dict(adapted)
  source = hf_reference.TESTDATA / f'ad_{name}'
  lora = g4.hf.load_peft(source, model=base)
  with tempfile.TemporaryDirectory() as folder:
    # Gradients have the names of their leaves, so they are read like them.
    folder = pathlib.Path(folder)
    shutil.copy(source / 'adapter_config.json', folder)
    shutil.copy(
        source / 'gradients.safetensors', folder / 'adapter_model.safetensors'
    )
    gradients = g4.hf.load_peft(folder, model=base).params
  return Case(
      base=base,
      params=_with_vision(ref.params, hf_reference.tensors(name), config),
      lora=lora.model,
      lora_params=lora.params,
      tokens=jnp.asarray(tokens),
      images=images,
      soft_tokens=soft_tokens,
      logits=ref.logits,
      adapted_soft_tokens=adapted['soft_tokens'],
      adapted_logits=adapted['logits'],
      gradients=gradients,
  )


def _images(
    patches: np.ndarray, positions: np.ndarray
) -> _upstream.PreprocessedVisionInput:
  """Returns `[2 2*36 _]`: each sequence has two images, one of them blank."""
  blank = np.full_like(patches[0], 7), np.full_like(positions[0], -1)
  rows = [
      [blank if i is None else (patches[i], positions[i]) for i in images]
      for images in _IMAGES
  ]
  joined = [
      np.stack([np.concatenate([image[part] for image in row]) for row in rows])
      for part in range(2)
  ]
  return _upstream.PreprocessedVisionInput(
      patches=jnp.asarray(joined[0]),
      positions_xy=jnp.asarray(joined[1], jnp.int32),
      soft_token_counts=_SOFT_TOKENS[:2],
  )


def far_padding(
    images: _upstream.PreprocessedVisionInput,
) -> _upstream.PreprocessedVisionInput:
  """Returns the images with other padding patches, far from zero."""
  is_padding = (images.positions_xy == -1).all(axis=-1, keepdims=True)
  patches = jnp.where(is_padding, 100 - images.patches, images.patches)
  return dataclasses.replace(images, patches=patches)


def run(model: nn.Module, params: Any, case: Case, images: Any = None):
  """Returns soft tokens `[8 16]` and logits `[2 16 64]`, of all real patches."""
  output, state = model.apply(
      {'params': params},
      case.tokens,
      images=case.images if images is None else images,
      capture_intermediates=lambda module, _: module.name == 'vision_encoder',
      mutable=['intermediates'],
  )
  (((soft_tokens, is_real),),) = state['intermediates']['vision_encoder'][
      '__call__'
  ]
  return (soft_tokens, is_real), output.logits


def loss(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """Mean cross-entropy of each next token that is text."""
  wanted = tokens[:, 1:]
  losses = optax.softmax_cross_entropy_with_integer_labels(
      logits[:, :-1], jnp.maximum(wanted, 0)
  )
  return jnp.mean(losses, where=wanted >= 0)


def step(model: nn.Module, case: Case):
  """Returns a compiled function of LoRA leaves and images.

  It returns soft tokens with their mask, logits, and gradients of `loss`.
  """

  @jax.jit
  def compute(lora_params, images):
    def value(lora_params):
      params = peft.merge_params(case.params, lora_params)
      soft_tokens, logits = run(model, params, case, images)
      return loss(logits, case.tokens), (soft_tokens, logits)

    grads, aux = jax.grad(value, has_aux=True)(lora_params)
    return *aux, grads

  return compute


# ------------------------------- The weights ------------------------------


def _with_vision(
    params: dict[str, Any],
    weights: dict[str, np.ndarray],
    config: _upstream.TransformerConfig,
) -> dict[str, Any]:
  """Adds Hugging Face's vision tower to gemma's tree."""
  projection = weights['model.embed_vision.embedding_projection.weight']
  embedder = {**params['embedder'], 'mm_input_projection': {'w': projection.T}}
  params = {**params, 'embedder': embedder}
  if 'model.vision_embedder.pos_embedding' in weights:
    return {**params, 'vision_encoder': _unified(weights)}
  tower = {
      key.removeprefix('model.vision_tower.').removesuffix('.weight'): value
      for key, value in weights.items()
      if key.startswith('model.vision_tower.')
  }
  table = tower['patch_embedder.position_embedding_table']
  layers = [
      _layer(
          {
              key.removeprefix(f'encoder.layers.{i}.'): value
              for key, value in tower.items()
              if key.startswith(f'encoder.layers.{i}.')
          },
          config.vision_encoder.num_heads,
      )
      for i in range(config.vision_encoder.num_layers)
  ]
  block = jax.tree.map(lambda *x: np.stack(x), *layers)
  vision = {
      'entry': {
          'input_projection': {'w': tower['patch_embedder.input_proj'].T},
          'pos_emb': table.swapaxes(0, 1),
      },
      'transformer': {'stacked_layers': {'block': block}},
  }
  if config.vision_encoder.standardize_embeddings:
    vision['standardize'] = {
        'bias': tower['std_bias'],
        'scale': tower['std_scale'],
    }
  return {**params, 'vision_encoder': vision}


def _unified(weights: dict[str, np.ndarray]) -> dict[str, Any]:
  """12B's images, which have no tower."""
  hf = {
      key.removeprefix('model.vision_embedder.'): value
      for key, value in weights.items()
  }
  norms = {
      name: {'scale': hf[f'{name}.weight'], 'bias': hf[f'{name}.bias']}
      for name in ('patch_ln1', 'patch_ln2', 'pos_norm')
  }
  dense = hf['patch_dense.weight'].T, hf['patch_dense.bias']
  return {
      **norms,
      'patch_dense': dict(zip(('kernel', 'bias'), dense, strict=True)),
      'pos_embedding': hf['pos_embedding'],
  }


def _layer(hf: dict[str, np.ndarray], num_heads: int) -> dict[str, Any]:
  """One layer of the tower."""

  def heads(name):  # (N*H, D) -> (N, D, H)
    w = hf[f'self_attn.{name}_proj.linear']
    return w.reshape(num_heads, -1, w.shape[-1]).transpose(0, 2, 1)

  def bounds(name):
    return {
        f'clip_{bound}': hf[f'{name}_proj.{bound}']
        for bound in ('input_min', 'input_max', 'output_min', 'output_max')
        if f'{name}_proj.{bound}' in hf
    }

  def scale(name):
    return {'scale': hf[name]}

  o = hf['self_attn.o_proj.linear']
  gate, up = hf['mlp.gate_proj.linear'], hf['mlp.up_proj.linear']
  return {
      'attn': {
          'q_einsum': {'w': heads('q')} | bounds('self_attn.q'),
          'kv_einsum': {'w': np.stack([heads('k'), heads('v')])}
          | bounds('self_attn.k'),
          'attn_vec_einsum': {'w': o.T.reshape(num_heads, -1, len(o))}
          | bounds('self_attn.o'),
          'query_norm': scale('self_attn.q_norm'),
          'key_norm': scale('self_attn.k_norm'),
      },
      'mlp': {
          'gating_einsum': {'w': np.stack([gate, up])} | bounds('mlp.gate'),
          'linear': {'w': hf['mlp.down_proj.linear'].T} | bounds('mlp.down'),
      },
      'pre_attention_norm': scale('input_layernorm'),
      'post_attention_norm': scale('post_attention_layernorm'),
      'pre_ffw_norm': scale('pre_feedforward_layernorm'),
      'post_ffw_norm': scale('post_feedforward_layernorm'),
  }
