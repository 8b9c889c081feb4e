"""How `g4.nn.LoRA` calls its model: with LoRA on, with LoRA off, or both."""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
from kauldron import kd

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _names
from gemma4_lora.nn import _interceptors
from gemma4_lora.nn import _log_adapted
from gemma4_lora.nn import _validate
from gemma4_lora.nn.attention import _attention
from gemma4_lora.nn.attention import _segments
from gemma4_lora.nn.branches import _copies
from gemma4_lora.nn.branches import _injector
from gemma4_lora.nn.branches import _quantized_base
from gemma4_lora.nn.wrapper import _output
from gemma4_lora.nn.wrapper import _wrapper


class Forward(_wrapper.ModelWrapper):
  """The calls of `g4.nn.LoRA`, which has the settings that they read."""

  # No annotation: a property, not a field.
  is_training = kd.nn.train_property()

  @nn.compact
  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Calls the model with LoRA."""
    if not self.is_initializing():
      _quantized_base.check(self.variables.get('params', {}), self.quantized)
      if not self.enabled:
        return self._call_disabled(*args, **kwargs)
      output = self._call_with_copies(*args, **kwargs)
      if not self.with_reference or not self._has_head(**kwargs):
        return output
      return output.replace(reference=self._call_base(*args, **kwargs))
    _log_adapted.log(self)
    output = self._call_adapted(*args, **kwargs)
    _validate.check_made(self.adapted, self.variables['params'])
    _copies.make(self, self.saved, dtype=self.dtype)
    _quantized_base.make(
        self, self.quantized, self.adapted, dtype=self.model.dtype
    )
    return output

  def _call_with_copies(self, *args: Any, **kwargs: Any) -> Any:
    """Calls the model, with copies in place of the base's parts."""
    saved = self.saved
    _validate.check_read(self.variables.get('params', {}), self.lora_shapes)
    if not saved:
      return self._call_adapted(*args, **kwargs)

    def substitute(variables):
      params = _copies.substitute(variables['params'], saved)
      return {**variables, 'params': params}

    call = nn.map_variables(
        type(self)._call_adapted, 'params', trans_in_fn=substitute
    )
    return call(self, *args, **kwargs)

  def _call_disabled(self, *args: Any, **kwargs: Any) -> Any:
    """Calls the model with LoRA off; it is its own reference."""
    _validate.check_not_training(self._is_training())
    call = self._call_intercepted
    output = self._call_with(call, [], *args, **kwargs)
    if not self.with_reference or not self._has_head(**kwargs):
      return output
    return output.replace(reference=output)

  def _call_base(self, *args: Any, **kwargs: Any) -> Any:
    """Calls the model without LoRA; no gradient flows through it."""
    # Detached: a module makes each of its submodules once.
    base = _wrapper.Plain(model=self.model.clone(parent=None, name=None))
    params = {'params': self.variables['params']}
    call = functools.partial(base.apply, params)
    return jax.lax.stop_gradient(self._call_with(call, [], *args, **kwargs))

  def _call_adapted(self, *args: Any, **kwargs: Any) -> Any:
    """Calls the model, with the branches added to its linears."""
    call = self._call_intercepted
    # Init needs no dropout, hence no rng for it.
    is_training = not self.is_initializing() and self._is_training()
    injectors = _interceptors.injectors(self, is_training=is_training)
    return self._call_with(call, injectors, *args, **kwargs)

  def _call_with(
      self,
      call: Callable[..., Any],
      injectors: list[_injector.Injector],
      *args: Any,
      **kwargs: Any,
  ) -> Any:
    """Calls the model under the injectors and those that save memory."""
    interceptors = [*_interceptors.savers(self, **kwargs), *injectors]
    if self.quantize:
      interceptors.append(_quantized_base.Quantized(self.model.dtype))
    kwargs = self._with_mask(*args, **kwargs)
    has_head = self._has_head(**kwargs)
    has_logits = not has_head or self.logits_in_training or not self.is_training
    if not has_logits:
      interceptors.append(_output.NoLogits())
    asked = kwargs.get('return_hidden_states')
    output = call(
        *args,
        interceptors={i.key: i for i in interceptors},
        **kwargs | ({'return_hidden_states': True} if has_head else {}),
    )
    if not has_head:
      return output
    return _output.add_head(
        output,
        embedding=_trees.get_at(
            self.variables['params'], tuple(_names.EMBEDDING.split('.'))
        ),
        soft_cap=self.model.config.final_logit_softcap,
        has_logits=has_logits,
        has_hidden_states=bool(asked),
    )

  def _has_head(
      self, *, return_last_only: bool | None = None, **_: Any
  ) -> bool:
    """Whether this is a step of Kauldron's over whole sequences."""
    if return_last_only or self.model.return_last_only:
      return False
    return not self.is_initializing() and self._mode() is not None

  def _with_mask(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Returns the arguments, with a mask if positions are of packed rows."""
    if not _segments.is_packed(**kwargs):
      return kwargs
    _segments.check(
        positions=kwargs['positions'],
        images=kwargs.get('images'),
        audio=kwargs.get('audio'),
    )
    # It reads the positions itself.
    if _attention.is_in_blocks(self.attention):
      return kwargs
    tokens = args[0] if args else kwargs['tokens']
    mask = _segments.attention_mask(tokens, kwargs['positions'])
    return kwargs | {'attention_mask': mask}

  def _is_training(self) -> bool:
    """False if the mode is unknown, as in samplers."""
    return self._mode() is True

  def _mode(self) -> bool | None:
    """Whether Kauldron is training; None if the mode is unknown."""
    try:
      return self.is_training
    except ValueError:
      return None
