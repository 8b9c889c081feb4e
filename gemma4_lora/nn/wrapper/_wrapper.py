"""What all wrappers of a Gemma 4 model share.

A wrapper changes what the model computes by intercepting method calls, and is
itself a model: same parameters at the same paths, same keys, same attributes.

It works around four problems:

* `Transformer.__call__` is under `nn.jit`, whose cache key has the module's
  class and fields but no interceptor: two wrappers of one model would share the
  program that was traced first. So each call goes to a copy of the model whose
  config carries one more field, a string that says what the interceptor does.
  (`_fingerprint_recursive` in `flax/linen/transforms.py`, flax 0.12.12.)
* `_router_fix`: gemma 4.0.1 normalises the MoE router's input twice; every
  wrapper corrects it.
* gemma drops logits behind an image, see `_media.expanded_vision_encoder`.
* gemma's vision tower attends to padding patches, see `_patch_mask`.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import inspect
from typing import Any

from flax import linen as nn
from kauldron import kontext

from gemma4_lora.gemma4 import _upstream
from gemma4_lora.gemma4.forward import _patch_mask
from gemma4_lora.gemma4.forward import _router
from gemma4_lora.nn.wrapper import _media

Interceptor = Callable[..., Any]


class ModelWrapper(nn.Module):
  """Base of the wrappers, with parameters, keys and attributes of its model."""

  _: dataclasses.KW_ONLY

  model: nn.Module

  def __init_subclass__(cls, **kwargs: Any):
    super().__init_subclass__(**kwargs)
    # For `help` and editors, which else show the arguments of `__new__`.
    _, *fields = inspect.signature(cls.__init__).parameters.values()
    cls.__signature__ = inspect.Signature(
        [x for x in fields if x.name not in ('parent', 'name')]
    )

  def __post_init__(self):
    super().__post_init__()
    # `{'params': model_params}` rather than `{'params': {'model': ...}}`.
    if self.scope is not None:
      nn.share_scope(self, self.model)

  def __kontext_keys__(self) -> dict[str, Any]:
    """Keys of the wrapped model, for Kauldron: `tokens='batch.input'`.

    Raises:
      ValueError: The model was made without `tokens=`.
    """
    keys = kontext.get_keypaths(self.model)
    if keys.get('tokens') == kontext.REQUIRED:
      name = type(self.model).__name__
      raise ValueError(
          f'{name}() does not say which field of the batch holds the tokens.'
          f' Write {name}(tokens="batch.input"), or the key that your dataset'
          ' has instead of "input".'
      )
    return keys

  def __getattr__(self, name: str) -> Any:
    # `model` itself is missing while flax or pickle builds the object.
    if name == 'model' or name.startswith('__'):
      raise AttributeError(name)
    return getattr(self.model, name)

  def _call_intercepted(
      self, *args: Any, interceptors: dict[str, Interceptor], **kwargs: Any
  ) -> Any:
    """Calls the model under interceptors.

    Args:
      *args: Positional arguments of the model's call.
      interceptors: Each interceptor by a string of everything it depends on.
        Equal strings may share one compiled program.
      **kwargs: Keyword arguments of the model's call.
    """
    tokens = args[0] if args else kwargs.get('tokens')
    images = kwargs.get('images')
    _media.check(tokens=tokens, images=images, audio=kwargs.get('audio'))
    interceptors = {'router': _router.feed_unnormalized()} | interceptors
    if images is not None:
      exclude_padding = _patch_mask.exclude_padding()
      interceptors |= {'no padding patches': exclude_padding}
      num_sharing = _media.num_sharing_images(tokens=tokens, images=images)
      if num_sharing > 1:
        images = _media.of_each_sequence(images, num_sharing)
        kwargs = kwargs | {'images': images}
      encode = _media.Images(num_sharing=num_sharing)
      interceptors |= {encode.key: encode}
    model = _with_key(self.model, key='; '.join(interceptors), parent=self)
    nn.share_scope(self, model)
    with contextlib.ExitStack() as stack:
      for interceptor in interceptors.values():
        stack.enter_context(nn.intercept_methods(interceptor))
      return model(*args, **kwargs)


class Plain(ModelWrapper):
  """The model under interceptors, and nothing else."""

  @nn.compact
  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Calls the model; `interceptors=` as in `_call_intercepted`."""
    return self._call_intercepted(*args, **kwargs)


def _with_key(model: nn.Module, *, key: str, parent: nn.Module) -> nn.Module:
  """Returns the model with a config that carries the key."""
  config = model.config
  fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
  fields['interceptor_key'] = key
  if config.vision_encoder is not None:
    fields['vision_encoder'] = _media.expanded_vision_encoder(
        config.vision_encoder
    )
  keyed = _keyed_class(type(config))(**fields)
  return model.clone(config=keyed, parent=parent, name=None)


@functools.cache
def _keyed_class(
    cls: type[_upstream.TransformerConfig],
) -> type[_upstream.TransformerConfig]:
  """Returns the config's class with one more field, which `nn.jit` sees."""
  return dataclasses.make_dataclass(
      cls.__name__,
      [('interceptor_key', str, dataclasses.field(kw_only=True))],
      bases=(cls,),
      frozen=True,
  )
