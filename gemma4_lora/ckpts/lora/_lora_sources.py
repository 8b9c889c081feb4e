"""Reads LoRA from all kinds of folders into one form."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from etils import epath
import numpy as np

from gemma4_lora import _trees
from gemma4_lora import hf
from gemma4_lora import host
from gemma4_lora import nn
from gemma4_lora import variants
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.ckpts.lora import _gemma_head
from gemma4_lora.ckpts.lora import _lora_file
from gemma4_lora.ckpts.lora import _lora_item
from gemma4_lora.gemma4 import _linears
from gemma4_lora.host import _storage_errors
from gemma4_lora.targets import _scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """LoRA that was saved.

  Attributes:
    leaves: NumPy arrays by dotted path.
    scales: Factor of A times B, by path of the projection; None if the
      checkpoint does not have it.
    settings: `use_rslora`, ... if the checkpoint has them.
    fingerprint: Fingerprint of base and settings; None if the file has none.
    what: Kind and path of the file, for messages.
  """

  leaves: Mapping[str, np.ndarray]
  scales: Mapping[str, float] | None = None
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  fingerprint: _fingerprint.Fingerprint | None = None
  what: str


def read(
    path: epath.PathLike,
    *,
    step: int,
    model: nn.LoRA | None,
    who: str,
) -> Found:
  """Reads LoRA from a folder of any kind that we know.

  Args:
    path: Folder of `save_lora` or of PEFT, or a workdir of Kauldron's; here or
      in a bucket.
    step: Which checkpoint of a workdir; -1 for the last.
    model: The model that reads it. PEFT's and gemma's layouts need it.
    who: The transform that asks, for messages.

  Raises:
    FileNotFoundError: There is nothing.
    ValueError: It cannot be read, or has no LoRA leaf.
  """
  path = host.path(path, who=who)
  with _storage_errors.explained(path, who=who):
    is_peft = (path / 'adapter_config.json').exists()
    is_own = not is_peft and _lora_file.is_file(path)
  if is_peft or is_own:
    if step != -1:
      raise ValueError(f'{who}: step={step}, and {path} is no workdir.')
    return _peft(path, model, who) if is_peft else _own(path, who)
  nested, fingerprint = _lora_item.read_lora(path, step=step, who=who)
  leaves = {_trees.join(k): x for k, x in _trees.flatten(nested).items()}
  if _gemma_head.is_gemmas(leaves):
    rows = _linears.linears(_required(model, who, "gemma's own LoRA").config)
    leaves = _gemma_head.to_ours(leaves, rows)
    paths = {name.rpartition('.')[0] for name in leaves}
    return Found(
        leaves=leaves,
        scales=dict.fromkeys(paths, 1.0),
        settings=variants.arguments(variants.PLAIN),
        what=f"gemma's own LoRA in {path}",
    )
  return _with_fingerprint(leaves, fingerprint, what=f'the workdir {path}')


def _own(path: epath.Path, who: str) -> Found:
  leaves, fingerprint = _lora_file.read(path, who=who)
  return _with_fingerprint(leaves, fingerprint, what=f'the LoRA in {path}')


def _with_fingerprint(
    leaves: Mapping[str, np.ndarray],
    fingerprint: _fingerprint.Fingerprint | None,
    *,
    what: str,
) -> Found:
  if fingerprint is None:  # Kauldron's own checkpointer wrote no settings.
    return Found(leaves=leaves, what=what)
  settings = fingerprint['lora']['settings']
  use_rslora = bool(settings.get('use_rslora'))
  return Found(
      leaves=leaves,
      scales={
          path: _scale.scale(x['alpha'], x['rank'], use_rslora=use_rslora)
          for path, x in fingerprint['lora']['projections'].items()
      },
      settings=settings,
      fingerprint=fingerprint,
      what=what,
  )


def _peft(path: epath.Path, model: nn.LoRA | None, who: str) -> Found:
  model = _required(model, who, 'a PEFT folder')
  loaded = hf.load_peft(path, model=model.model)
  return Found(
      leaves={
          _trees.join(k): np.asarray(x)
          for k, x in _trees.flatten(loaded.params).items()
      },
      scales=scales_of(loaded.model),
      settings=variants.arguments(loaded.model.variant),
      what=f'the PEFT folder {path}',
  )


def scales_of(model: nn.LoRA) -> dict[str, float]:
  """Returns the factor of A times B, by path of the projection."""
  return {
      linear.row.lora_path: linear.scale(use_rslora=model.use_rslora)
      for linear in model.adapted
  }


def _required(model: nn.LoRA | None, who: str, what: str) -> nn.LoRA:
  if model is None:
    raise ValueError(
        f'{who}: {what} is read with the help of the model: write {who}(path=…,'
        ' model=cfg.ref.model).'
    )
  return model
