"""The interceptors under which `g4.nn.LoRA` calls its model, by its settings."""

from typing import Any

from gemma4_lora.nn.attention import _attention
from gemma4_lora.nn.attention import _segments
from gemma4_lora.nn.blocks import _remat
from gemma4_lora.nn.blocks import _scan
from gemma4_lora.nn.branches import _experts
from gemma4_lora.nn.branches import _injector


def injectors(lora: Any, *, is_training: bool) -> list[_injector.Injector]:
  """Returns those that add the branches: one for experts, one for all else.

  Args:
    lora: A `g4.nn.LoRA`.
    is_training: Whether there is dropout, and one product of base and branches.
  """
  by_cls = {}
  for linear in lora.adapted:
    is_expert = linear.row.is_routed
    cls = _experts.ExpertInjector if is_expert else _injector.Injector
    by_cls.setdefault(cls, []).append(linear)
  return [
      cls(
          adapted=adapted,
          use_rslora=lora.use_rslora,
          is_training=is_training,
          dtype=lora.dtype,
          root=lora.path,
          base_dtype=lora.model.dtype,
          init=lora.init_lora_weights,
      )
      for cls, adapted in by_cls.items()
  ]


def savers(lora: Any, **kwargs: Any) -> list[Any]:
  """Returns those that save memory or compile time, outermost first.

  Args:
    lora: A `g4.nn.LoRA`.
    **kwargs: Keyword arguments of its call. With a cache, nothing is returned.
  """
  if kwargs.get('cache') is not None:
    return []
  chosen: list[Any] = []
  if lora.remat != 'none':
    chosen.append(_remat.Names())
    if not lora.scan_layers:
      chosen.append(_remat.Remat(lora.remat))
  if _attention.is_in_blocks(lora.attention):
    is_causal = kwargs.get('attention_mask') is None and (
        kwargs.get('images') is None
        or lora.model.config.use_bidirectional_attention is None
    )
    chosen.append(
        _attention.BlockwiseAttention(
            lora.attention,
            is_causal=is_causal,
            is_packed=_segments.is_packed(**kwargs),
        )
    )
  if lora.scan_layers:
    chosen.append(
        _scan.Scan(adapted=lora.adapted, saved=lora.saved, remat=lora.remat)
    )
  return chosen
