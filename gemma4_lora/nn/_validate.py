"""What a `g4.nn.LoRA` refuses."""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import difflib
import math
from typing import Any

import flax
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gemma4_lora import _trees
from gemma4_lora import variants
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.nn.branches import _init
from gemma4_lora.nn.wrapper import _router_fix
from gemma4_lora.targets import _full
from gemma4_lora.targets import _resolve

# PEFT's argument names, and the arguments of `g4.nn.LoRA` that do the same.
_OF_PEFT = {
    'r': 'rank=',
    'lora_alpha': 'alpha=',
    'lora_dropout': 'dropout=',
    'target_modules': 'targets=',
    'exclude_modules': 'targets= (g4.targets.Rule)',
    'layers_to_transform': 'targets=[g4.targets.Rule(…, layers=…)]',
    'rank_pattern': 'targets=[g4.targets.Rule(…, rank=…)]',
    'alpha_pattern': 'targets=[g4.targets.Rule(…, alpha=…)]',
}


def check_words(arguments: Collection[str], *, known: Collection[str]) -> None:
  """Raises for arguments that `g4.nn.LoRA` does not have.

  Args:
    arguments: Names of the constructor's arguments.
    known: Names of the arguments that it has.

  Raises:
    TypeError: An argument is unknown. For PEFT's names, the error gives ours.
  """
  found = {name: _OF_PEFT[name] for name in arguments if name in _OF_PEFT}
  if found:
    both = ', '.join(f'{ours} for {name}=' for name, ours in found.items())
    raise TypeError(
        "g4.nn.LoRA has names of its own for PEFT's arguments: write"
        f' {both}. For example: g4.nn.LoRA(rank=16, alpha=32, model=…).'
    )
  for name in arguments:
    if name not in known:
      close = difflib.get_close_matches(name, known, n=1)
      hint = f' Did you mean {close[0]}=?' if close else ''
      raise TypeError(f'g4.nn.LoRA has no argument {name!r}.{hint}')


def check_model(model: nn.Module) -> None:
  """Raises unless this is a bare Gemma 4 model."""
  if 'rank' in getattr(type(model), '__dataclass_fields__', ()):
    name = f'{type(model).__module__}.{type(model).__qualname__}'
    raise ValueError(
        f'g4.nn.LoRA(model=...) got a model with LoRA already: {name}. Wrap the'
        ' bare model once, with all targets.'
    )
  if isinstance(model, _router_fix.RouterFix):
    raise ValueError(
        'g4.nn.LoRA corrects the router by itself: pass it the bare model,'
        ' without g4.nn.RouterFix.'
    )
  _upstream.check_is_gemma4(model, argument='g4.nn.LoRA(model=...)')


def check_read(params: Mapping[str, Any], read: Collection[str]) -> None:
  """Raises if there are LoRA leaves that the model does not read.

  Args:
    params: Parameters, nested.
    read: What the model reads, by dotted path.
  """
  leaves = [
      _trees.key_path(path)
      for path, _ in jax.tree_util.tree_leaves_with_path(params)
  ]
  ignored = [
      '.'.join(leaf)
      for leaf in leaves
      if _trees.is_lora(leaf) and '.'.join(leaf) not in read
  ]
  if ignored:
    own = ''.join(
        f' {leaf.plural} ({leaf.name}) {variant.setting},'
        for variant, leaf in variants.owners()
    )
    raise ValueError(
        f'The parameters have {len(ignored)} LoRA leaves that this model does'
        f' not read, and that would be ignored: {", ".join(ignored[:4])}. A and'
        f' B need targets=,{own} and what is trained in full modules_to_save=.'
    )


def check_made(
    adapted: Sequence[_resolve.Adapted], params: Mapping[str, Any]
) -> None:
  """Raises if `init` left a projection without LoRA leaves.

  Reads the parameters: notes taken while tracing may be missing, as `nn.jit`
  may not trace anew.
  """
  flat = flax.traverse_util.flatten_dict(params, sep='.')
  lacking = [x.row for x in adapted if f'{x.row.lora_path}.a' not in flat]
  if not lacking:
    return
  towers = {row.tower for row in lacking}
  inputs = [
      arguments
      for tower, arguments in (
          ('vision', 'images='),
          ('audio', 'audio=, audio_lengths= and audio_soft_token_counts='),
      )
      if tower in towers
  ]
  if inputs:
    why = (
        'gemma makes the audio tower, and the projections of both towers into'
        ' the text width, only when init is given their input. Give it'
        f' {" and ".join(inputs)}, or leave these projections out of targets=.'
        ' In a config, images="batch.images" of the model gives it images; for'
        ' audio gemma has no such key.'
    )
  else:
    why = (
        'The model never calls them, so that LoRA there would do nothing. Leave'
        ' them out of targets=, or install a gemma that gemma4_lora knows'
        ' (4.0.1, 4.1.0).'
    )
  names = ', '.join(dict.fromkeys(row.starred(row.name) for row in lacking))
  raise ValueError(
      f'g4.nn.LoRA: init made no LoRA leaves for {len(lacking)} of'
      f' {len(adapted)} projections: {names}. {why}'
  )


def check_flags(flags: Mapping[str, Any]) -> None:
  """Raises unless all are True or False; Python takes other words for True."""
  for name, value in flags.items():
    if not isinstance(value, (bool, np.bool_)):
      raise ValueError(f'{name}= takes True or False. Got: {value!r}')


def check_dtype(dtype: Any) -> None:
  # NumPy takes None for float64.
  if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f'dtype= takes a floating dtype. Got: {dtype!r}')


def check_no_experts(
    adapted: Sequence[_resolve.Adapted], *, setting: str
) -> None:
  """Raises if a setting does not apply to routed experts that are targeted."""
  out = [x.row.name for x in adapted if x.row.is_routed]
  if out:
    raise ValueError(
        f'{setting} does not reach routed experts: targets= takes {len(out)}'
        f' such linears, {out[0]} first. Leave them out, or drop the setting.'
    )


def check_init(
    adapted: Sequence[_resolve.Adapted], init: str, *, use_rslora: bool
) -> None:
  """Raises where targets, ranks or scales do not fit the initialisation."""
  setting = f'init_lora_weights={init!r}'
  if init == 'orthogonal':
    for linear in adapted:
      if linear.rank % 2:
        raise ValueError(
            f'{setting} takes an even rank. Got: {linear.rank}, at'
            f' {linear.row.name}'
        )
  if not _init.waits(init):
    return
  if _init.is_from_base(init):
    check_no_experts(adapted, setting=setting)
  for linear in adapted:
    name, row = linear.row.name, linear.row
    largest = min(math.prod(row.in_shape), math.prod(row.out_shape))
    if linear.rank > largest:
      raise ValueError(
          f'{setting} takes a rank up to that of the weight, which is'
          f' {largest} at {name}. Got: {linear.rank}'
      )
    if linear.scale(use_rslora=use_rslora) <= 0:
      raise ValueError(
          f'{setting} takes a positive alpha. Got: {linear.alpha}, at {name}'
      )


def check_quantized(
    quantized: Collection[str],
    adapted: Sequence[_resolve.Adapted],
    saved: Sequence[_full.Saved],
    *,
    init: str,
) -> None:
  """Raises if a part of the base that is trained or changed is quantised.

  And where LoftQ has nothing to make up for.
  """
  if _init.is_loftq(init):
    as_is = [x.row.name for x in adapted if x.row.path not in quantized]
    if as_is:
      raise ValueError(
          f'init_lora_weights={init!r} makes up for what quantising loses, and'
          f' quantize= leaves {len(as_is)} of {len(adapted)} adapted linears as'
          f' they are: {", ".join(as_is[:4])}. Name them in quantize=, or leave'
          ' them out of targets=.'
      )
  if quantized and _init.is_from_base(init):
    raise ValueError(
        f'quantize= keeps the base as it is, and init_lora_weights={init!r}'
        " changes it. Take 'loftq', which starts from the quantisation's error,"
        " or 'default', 'gaussian' or 'orthogonal'."
    )
  out = [part.row for part in saved if part.row.path in quantized]
  if out:
    names = ', '.join(row.name for row in out[:4])
    raise ValueError(
        f'modules_to_save= trains {len(out)} parts in full that quantize= holds'
        f' in few bits: {names}. Take them out of modules_to_save=, or name in'
        ' quantize= only parts without them.'
    )


def check_reference(init: str, *, setting: str) -> None:
  """Raises where the model with LoRA off is not the released one."""
  if _init.is_from_base(init):
    raise ValueError(
        f'{setting} needs the base as it was, and init_lora_weights={init!r}'
        ' changes it: with LoRA off the model is another one. Take'
        " 'default', 'gaussian' or 'orthogonal'."
    )


def check_not_training(is_training: bool) -> None:
  """Raises where a model with LoRA off is trained."""
  if is_training:
    raise ValueError(
        'g4.nn.LoRA(enabled=False) has nothing to train: it is for evaluators'
        ' and samplers. Leave enabled= out of the model that is trained.'
    )
