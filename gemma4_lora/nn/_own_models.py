"""Classes for `g4.nn` of the sizes of Gemma 4 for which gemma has none."""

from gemma4_lora.gemma4 import _sizes

_OWN = {x.name: x.cls for x in _sizes.SIZES if x.namespace == 'g4.nn'}
globals().update(_OWN)
__all__ = tuple(_OWN)
