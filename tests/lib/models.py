"""The tiny models of tests: bare or with LoRA, whole or cut to few layers."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from gemma4_lora import g4
from gemma4_lora.gemma4 import _upstream


def shallow(model: nn.Module) -> nn.Module:
  """Returns the model with the fewest layers that keep its every feature.

  Four where layers share keys and values, two elsewhere: compile time.
  """
  repeats = 2 if model.config.kv_cache_sharing_config else 1
  return with_layers(model, (False, True) * repeats)


def one_layer(model: nn.Module, *, num_audio: int = 1) -> nn.Module:
  """Returns the model with one layer, for tests of what all layers do.

  One in the audio tower, too, where each layer is compiled. The vision tower's two
  are a loop.

  Args:
    model: A Gemma 4 model.
    num_audio: Number of layers of the audio tower.
  """
  config = dataclasses.replace(model.config, kv_cache_sharing_config=None)
  if config.audio_encoder:
    audio = dataclasses.replace(config.audio_encoder, num_layers=num_audio)
    config = dataclasses.replace(config, audio_encoder=audio)
  return with_layers(model.clone(config=config), (True,))


def with_layers(model: nn.Module, is_global: tuple[bool, ...]) -> nn.Module:
  """Returns the model with these layers: global ones and local ones."""
  types = _upstream.attention_types(is_global)
  return model.clone(
      config=dataclasses.replace(model.config, attention_types=types)
  )


def wide_heads(model: nn.Module) -> nn.Module:
  """Returns the model with heads as wide as TPU kernels need: 128."""
  return model.clone(
      config=dataclasses.replace(
          model.config, head_dim=128, global_key_size=128
      )
  )


def whole(model: nn.Module) -> nn.Module:
  """Returns the model with all its layers."""
  return model


def base(
    name: str = 'Gemma4_31B',
    *,
    cut: Callable[[nn.Module], nn.Module] = shallow,
    **kwargs: Any,
) -> nn.Module:
  """Returns a tiny model, in bfloat16 unless `dtype=` differs.

  Args:
    name: Name of a class in `g4.testing`.
    cut: Which layers to keep: `shallow`, `one_layer` or `whole`.
    **kwargs: Arguments of the class.
  """
  cls = getattr(g4.testing, name)
  return cut(cls(**{'tokens': 'batch.input'} | kwargs))


def lora(
    name: str = 'Gemma4_31B',
    *,
    cut: Callable[[nn.Module], nn.Module] = shallow,
    base_dtype: Any = jnp.float32,
    text_only: bool = True,
    images: str | None = None,
    **settings: Any,
) -> g4.nn.LoRA:
  """Returns a tiny model with LoRA, its base in float32.

  Args:
    name: Name of a class in `g4.testing`.
    cut: Which layers to keep: `shallow`, `one_layer` or `whole`.
    base_dtype: Dtype of the base model; `dtype=` is that of A and B.
    text_only: Whether to drop the towers.
    images: Key of the images.
    **settings: Arguments of `g4.nn.LoRA`.
  """
  kwargs = {'dtype': base_dtype, 'text_only': text_only, 'images': images}
  return g4.nn.LoRA(model=base(name, cut=cut, **kwargs), **settings)
