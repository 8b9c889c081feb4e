"""The base of a config's model: shapes and dtypes of its leaves."""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
from typing import Any

from gemma4_lora import _trees
from gemma4_lora import nn
from gemma4_lora.ckpts.restore import _restore_plan
from gemma4_lora.ckpts.sources import _checkpoint_layouts
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.quant import _format

ROOT = ('params',)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelBase:
  """Leaves of a base, as the model without LoRA and without quantising has them.

  Attributes:
    shapes: Shape and dtype of each leaf, by its path below `params`.
    encodings: How the run holds each quantised leaf, by dotted path.
  """

  shapes: Mapping[_trees.Path, Any]
  encodings: Mapping[str, _format.Encoding]

  def tree(
      self,
      stored: Iterable[_checkpoint_layouts.Stored],
      *,
      old: _trees.Path = ROOT,
  ) -> _restore_plan.SubTree:
    """Pairs the base with leaves of checkpoints.

    Args:
      stored: The leaves.
      old: The sub-tree that they are in.
    """
    return _restore_plan.SubTree(
        new=ROOT,
        old=old,
        model=tuple(
            _restore_plan.ModelLeaf(
                path=(*ROOT, *path),
                rel=path,
                shape=x.shape,
                dtype=x.dtype,
                encoding=self.encodings.get(_trees.join(path)),
            )
            for path, x in self.shapes.items()
        ),
        stored=tuple(stored),
    )


def of(model: Any) -> ModelBase:
  """Returns the base of a `g4.nn.LoRA`, or of a Gemma 4 without one."""
  is_lora = isinstance(model, nn.LoRA)
  base = model.model if is_lora else model
  return ModelBase(
      shapes=_trees.flatten(_upstream.abstract_params(base)),
      encodings=model.quantized if is_lora else {},
  )


def abstract(model: Any) -> dict[str, Any]:
  """Returns shapes and dtypes of a model's base, nested, as it is quantised."""
  if not isinstance(model, nn.LoRA):
    return dict(_upstream.abstract_params(model))
  params = dict(_upstream.abstract_params(model.model))
  for name, encoding in model.quantized.items():
    path = tuple(name.split('.'))
    new = encoding.abstract(_trees.get_at(params, path).shape)
    params = _trees.replace_at(params, path, new)
  return params
