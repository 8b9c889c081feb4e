"""A run on disk: its base, leaf by leaf and without data, and its LoRA."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from absl import logging
from etils import epath
from gemma import gm
import jax
from kauldron import kd
import numpy as np

from gemma4_lora import _trees
from gemma4_lora import nn
from gemma4_lora.ckpts import _partial_load
from gemma4_lora.ckpts import _skip_lora
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.ckpts.lora import _lora_item
from gemma4_lora.ckpts.restore import _policy
from gemma4_lora.ckpts.restore import _restore
from gemma4_lora.ckpts.restore import _restore_plan
from gemma4_lora.ckpts.sources import _checkpoint_layouts
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.ckpts.sources import _quantized_leaves
from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _upstream

_ROOT = ('params',)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
  """Where a leaf is on disk.

  Attributes:
    source: The checkpoint.
    stored: What it is in there.
    released: Whether PiSSA and OLoRA have not changed it yet.
  """

  source: _open.Source
  stored: _checkpoint_layouts.Stored
  released: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseLeaf:
  """A leaf of the base.

  Attributes:
    path: Dotted, below `params`, as `model.init` spells it.
    shape: Its shape.
    dtype: As it is to be written: that of the file, or the model's if wider.
    model_dtype: In which the run had it.
    place: Where it is; None for what the model declares and never reads, and no
      file has.
  """

  path: str
  shape: tuple[int, ...]
  dtype: np.dtype
  model_dtype: np.dtype
  place: Place | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """A run on disk.

  Attributes:
    model: What it trained.
    leaves: Of its base, towers of the file included.
    lora: Its LoRA leaves, nested, on the host; empty to export the base alone.
    fingerprint: Of what it was trained on, if it has one.
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
  writes all), and for the rest what `init_transform=` started from.

  Args:
    model: Of the config: a `g4.nn.LoRA`; or any Gemma 4 without a workdir.
    init_transform: Of the config.
    workdir: Of the run, None for the base alone.
    step: Which checkpoint of the run; -1 for the last.
    check: Whether NaN in the LoRA is an error.
    who: The command, for messages.

  Raises:
    FileNotFoundError: There is no checkpoint.
    ValueError: What is there cannot be read, or does not fit the config.
  """
  base = model.model if isinstance(model, nn.LoRA) else model
  _upstream.check_is_gemma4(base, argument=f'{who}: model=')
  shapes = _trees.flatten(_upstream.abstract_params(base))
  encodings = model.quantized if isinstance(model, nn.LoRA) else {}
  request = base_request(init_transform)
  lora, fingerprint, own = {}, None, None
  if workdir is not None:
    lora, fingerprint = _lora_item.read_lora(workdir, step=step, who=who)
    if check:
      _check_finite(lora, who=who)
    own = _own_base(workdir, step=step, who=who)
  if own is None and request is None:
    raise ValueError(
        f'{who}: init_transform= of the config restores no base that can be read'
        f' leaf by leaf: {type(init_transform).__name__}. Give it as'
        ' g4.ckpts.SkipLoRA4(wrapped=gm.ckpts.LoadCheckpoint(path=…)), or as'
        ' wrapped=g4.ckpts.PartialLoad(path=…); or restore the base by hand and'
        ' call g4.nn.fuse_params(model, params).'
    )
  found: dict[_trees.Path, Place] = {}
  if request is not None:
    source = _opened(request, who=who)
    found |= {
        key: Place(source=source, stored=x, released=True)
        for key, x in _usable(source, request, shapes, encodings, who=who)
    }
  if own is not None:
    found |= {
        _names.canonical(x.path[1:]): Place(
            source=own, stored=x, released=False
        )
        for x in _quantized_leaves.group(own.leaves.values(), who=who)
        if x.path[:1] == _ROOT and not _trees.is_lora(x.path)
    }
  return Run(
      model=model,
      leaves=_leaves(found, shapes, encodings, who=who),
      lora=lora,
      fingerprint=fingerprint,
      where=' + '.join(
          sorted({str(x.source.path) for x in found.values()})
          + ([str(workdir)] if workdir is not None else [])
      ),
  )


def base_request(transform: Any) -> _restore.Request | None:
  """Returns from where a transform restores the base, None if we cannot know.

  Args:
    transform: An `init_transform=`.

  Raises:
    ValueError: Several restore one.
  """
  if isinstance(transform, (_skip_lora.SkipLoRA4, gm.ckpts.SkipLoRA)):
    return base_request(transform.wrapped)
  if isinstance(transform, kd.ckpts.MultiTransform):
    parts = vars(transform)['_transforms'].values()
    found = [x for x in map(base_request, parts) if x is not None]
    if len(found) > 1:
      raise ValueError(
          f'init_transform= restores a base from {len(found)} checkpoints:'
          f' {[str(x.path) for x in found]}. Leave the one that counts.'
      )
    return found[0] if found else None
  if isinstance(transform, _partial_load.PartialLoad):
    return transform.request('PartialLoad')
  return _skip_lora.request(transform)


def _own_base(
    workdir: epath.PathLike, *, step: int, who: str
) -> _open.Source | None:
  """Returns the run's own checkpoint, if it has the base."""
  source = _open.open_source(workdir, step=step, who=who)
  if _fingerprint.read(source.path.parent) is not None:
    return None
  has_base = any(
      path[:1] == _ROOT and not _trees.is_lora(path) for path in source.leaves
  )
  return source if has_base else None


def _opened(request: _restore.Request, *, who: str) -> _open.Source:
  if request.new_to_old.get('params') is None:
    raise ValueError(
        f'{who}: init_transform= restores {dict(request.new_to_old)}: the base'
        " must come whole, as new_to_old={'params': …}."
    )
  source = _open.open_source(request.path, step=request.step, who=who)
  if _fingerprint.read(source.path.parent) is not None:
    raise ValueError(
        f'{who}: {source.path}, from which init_transform= restores, has LoRA'
        ' and no base.'
    )
  return source


def _usable(source, request, shapes, encodings, *, who):
  """Yields what the run may have taken, by canonical path."""
  old = _trees.parts(request.new_to_old['params'])
  tree = _tree(
      _quantized_leaves.group(
          [x for p, x in source.leaves.items() if p[: len(old)] == old], who=who
      ),
      shapes,
      encodings,
      old=old,
  )
  plan = _restore_plan.make_plan(
      [tree], ignore_restored_keys=request.ignore_restored_keys
  )
  dropped = {
      x.path
      for leaves in (
          plan.unexpected if request.unexpected == 'warn' else (),
          plan.left_out.get(_restore_plan.IGNORED, ()),
          plan.left_out.get(_restore_plan.LORA, ()),
      )
      for x in leaves
  }
  for x in tree.stored:
    if x.path not in dropped:
      yield _names.canonical(tree.relative(x)), x


def _tree(stored, shapes, encodings, *, old=_ROOT) -> _restore_plan.SubTree:
  return _restore_plan.SubTree(
      new=_ROOT,
      old=old,
      model=tuple(
          _restore_plan.ModelLeaf(
              path=(*_ROOT, *path),
              rel=path,
              shape=x.shape,
              dtype=x.dtype,
              encoding=encodings.get(_trees.join(path)),
          )
          for path, x in shapes.items()
      ),
      stored=tuple(stored),
  )


def _leaves(
    found: Mapping[_trees.Path, Place],
    shapes: Mapping[_trees.Path, Any],
    encodings: Mapping[str, Any],
    *,
    who: str,
) -> tuple[BaseLeaf, ...]:
  """Returns all leaves, once it is known that the model's are there."""
  tree = _tree(
      [
          dataclasses.replace(x.stored, path=(*_ROOT, *key))
          for key, x in found.items()
      ],
      shapes,
      encodings,
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
    if x.encoding is not None:  # Of codes.
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
  bad = [
      path
      for path, x in _trees.flatten(lora).items()
      if not np.isfinite(np.asarray(x, np.float32)).all()
  ]
  if bad:
    raise ValueError(
        f'{who}: {len(bad)} LoRA leaves have NaN or infinite values:'
        f' {", ".join(map(_trees.join, bad[:3]))}. The run diverged, or was not'
        ' started: give an earlier --step=.'
    )
