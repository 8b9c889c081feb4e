"""A run on disk: its base, leaf by leaf and without data, and its LoRA."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from absl import logging
from etils import epath
import jax
import numpy as np

from gemma4_lora import _trees
from gemma4_lora import nn
from gemma4_lora.ckpts import _requests
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.ckpts.lora import _lora_item
from gemma4_lora.ckpts.restore import _policy
from gemma4_lora.ckpts.restore import _restore_plan
from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.nn.branches import _pending
from gemma4_lora.runs import _model_base
from gemma4_lora.runs import _places


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseLeaf:
  """A leaf of the base.

  Attributes:
    path: Dotted, below `params`, as `model.init` spells it.
    shape: Its shape.
    dtype: As it is to be written: that of the file, or the model's if wider.
    model_dtype: Its dtype in the run.
    place: Where it is; None for leaves that the model declares and never reads,
      and that no file has.
  """

  path: str
  shape: tuple[int, ...]
  dtype: np.dtype
  model_dtype: np.dtype
  place: _places.Place | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """A run on disk.

  Attributes:
    model: What it trained.
    leaves: Leaves of its base, with towers that only the file has.
    lora: Its LoRA leaves, nested, on the host; empty to export the base alone.
    fingerprint: What LoRA was trained on, if the file says so.
    where: Its base and its LoRA, for messages.
  """

  model: Any
  leaves: tuple[BaseLeaf, ...]
  lora: dict[str, Any]
  fingerprint: _fingerprint.Fingerprint | None
  where: str


def open_run(
    model: Any,
    init_transform: Any,
    *,
    workdir: epath.PathLike | None,
    step: int = -1,
    check: bool = True,
    who: str,
) -> Run:
  """Opens a run; reads its LoRA and none of its base.

  The base is what the run's checkpoint has of it (`kd.ckpts.Checkpointer`
  writes all), and for the rest what `init_transform=` started from. If that
  has a transform that we cannot read for its settings, such as a subclass of
  `g4.ckpts.PartialLoad`, it is called, and the whole base is in memory.

  Args:
    model: The config's model: a `g4.nn.LoRA`; or any Gemma 4 without a workdir.
    init_transform: The config's `init_transform=`.
    workdir: The run's workdir, None for the base alone.
    step: Which checkpoint of the run; -1 for the last.
    check: Whether NaN in the LoRA is an error.
    who: The command, for messages.

  Raises:
    FileNotFoundError: There is no checkpoint.
    ValueError: The checkpoint cannot be read, or does not fit the config.
  """
  _upstream.check_is_gemma4(
      model.model if isinstance(model, nn.LoRA) else model,
      argument=f'{who}: model=',
  )
  base = _model_base.of(model)
  lora, fingerprint, own = {}, None, {}
  if workdir is not None:
    lora, fingerprint = _lora_item.read_lora(workdir, step=step, who=who)
    if check:
      _check_finite(lora, who=who)
    own = _places.of_workdir(workdir, step=step, who=who)
  found: _places.Places = {}
  # What is called gives the model's leaves alone, which the run has saved.
  if not own or not _requests.unknown(init_transform):
    found = _places.of_transform(
        model, init_transform, base, alone=workdir is None, who=who
    )
  found |= own
  if not found:
    raise ValueError(
        f'{who}: init_transform= of the config restores no base that can be read'
        f' leaf by leaf: {type(init_transform).__name__}. Give it as'
        ' g4.ckpts.SkipLoRA4(wrapped=gm.ckpts.LoadCheckpoint(path=…)), or as'
        ' wrapped=g4.ckpts.PartialLoad(path=…); or restore the base by hand and'
        ' call g4.nn.fuse_params(model, params).'
    )
  return Run(
      model=model,
      leaves=_leaves(found, base, who=who),
      lora=lora,
      fingerprint=fingerprint,
      where=' + '.join(
          sorted({str(x.source.path) for x in found.values()})
          + ([str(workdir)] if workdir is not None else [])
      ),
  )


def _leaves(
    found: _places.Places, base: _model_base.ModelBase, *, who: str
) -> tuple[BaseLeaf, ...]:
  """Returns all leaves, once it is known that the model's are there."""
  shapes = base.shapes
  tree = base.tree(
      dataclasses.replace(x.stored, path=(*_model_base.ROOT, *key))
      for key, x in found.items()
  )
  plan = _restore_plan.make_plan([tree])
  where = ' + '.join(sorted({str(x.source.path) for x in found.values()}))
  # A tower that the model has and the file has not: no run could have used it.
  absent = [x for x in plan.missing if _names.tower_of(x.rel)]
  missing = tuple(x for x in plan.missing if x not in absent)
  _policy.check(
      dataclasses.replace(plan, missing=missing),
      [tree],
      who=who,
      where=where,
      missing='error',
      unexpected='error',
      has_policy=True,
  )
  spelt = {_names.canonical(path): path for path in shapes}
  leaves = []
  for key, place in found.items():
    x = place.stored
    path = spelt.get(key, x.path[1:] if place.source.layout != 'flat' else key)
    like = shapes.get(path, x)
    dtype, model_dtype = x.dtype, like.dtype
    if x.encoding is not None:  # Its dtype is that of codes.
      model_dtype = like.dtype if path in shapes else jax.numpy.bfloat16
      dtype = model_dtype
    leaves.append(
        BaseLeaf(
            path=_trees.join(path),
            shape=tuple(x.shape),
            dtype=np.dtype(jax.numpy.promote_types(dtype, model_dtype)),
            model_dtype=np.dtype(model_dtype),
            place=place,
        )
    )
  for x in plan.pruned:
    leaves.append(
        BaseLeaf(
            path=_trees.join(x.rel),
            shape=x.shape,
            dtype=np.dtype(x.dtype),
            model_dtype=np.dtype(x.dtype),
            place=None,
        )
    )
  if absent:
    logging.info(
        '%s: %s has none of %d leaves of towers: nor has what is written.',
        who,
        where,
        len(absent),
    )
  return tuple(leaves)


def _check_finite(lora: Mapping[str, Any], *, who: str) -> None:
  problem = _pending.problem(_trees.flatten(lora))
  if problem:
    raise ValueError(f'{who}: {problem} That is another --step=.')
