"""Finds each leaf of a run's base: in a file, or in a transform's result."""

from collections.abc import Iterator
import dataclasses
from typing import Any

from gemma4_lora import _trees
from gemma4_lora import nn
from gemma4_lora.ckpts import _requests
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.ckpts.restore import _prepare
from gemma4_lora.ckpts.restore import _restore_plan
from gemma4_lora.ckpts.sources import _checkpoint_layouts
from gemma4_lora.ckpts.sources import _in_memory
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.ckpts.sources import _quantized_leaves
from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.nn.branches import _init
from gemma4_lora.runs import _called_base
from gemma4_lora.runs import _model_base


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
  """Where a leaf is.

  Attributes:
    source: The checkpoint.
    stored: The leaf of that checkpoint.
    released: Whether PiSSA and OLoRA have not changed it yet.
  """

  source: _open.Source
  stored: _checkpoint_layouts.Stored
  released: bool


Places = dict[_trees.Path, Place]


def of_transform(
    model: Any,
    init_transform: Any,
    base: _model_base.ModelBase,
    *,
    alone: bool,
    who: str,
) -> Places:
  """Returns where the base is that a transform restores, by canonical path.

  Args:
    model: The config's model.
    init_transform: The config's. What has to be called is called: then the
      whole base is in memory.
    base: The Gemma 4 that the model wraps.
    alone: Whether the base is wanted as it was before LoRA.
    who: The command, for messages.

  Returns:
    The places; none if the transform restores no base.

  Raises:
    FileNotFoundError: There is no checkpoint.
    ValueError: What is there cannot be read, or does not fit the config.
  """
  if _requests.unknown(init_transform):
    source = _called(model, init_transform, alone=alone, who=who)
    return _of_all(source, who=who)
  request = _requests.base_request(init_transform)
  if request is None:
    return {}
  source = _opened(request, who=who)
  return {
      key: Place(source=source, stored=x, released=True)
      for key, x in _usable(source, request, base, who=who)
  }


def of_workdir(workdir: Any, *, step: int, who: str) -> Places:
  """Returns where the base is in a run's own checkpoint, if that has one."""
  source = _open.open_source(workdir, step=step, who=who)
  if _fingerprint.read_beside(source.path) is not None:
    return {}
  return _of_all(source, who=who)


def _of_all(source: _open.Source, *, who: str) -> Places:
  """Returns all leaves of a base as a run had it."""
  return {
      _names.canonical(x.path[1:]): Place(
          source=source, stored=x, released=False
      )
      for x in _quantized_leaves.group(source.leaves.values(), who=who)
      if x.path[:1] == _model_base.ROOT and not _trees.is_lora(x.path)
  }


def _called(
    model: Any, init_transform: Any, *, alone: bool, who: str
) -> _open.Source:
  """Returns the base that a transform makes."""
  name = _called_base.describe(init_transform)
  if isinstance(model, nn.LoRA):
    if alone and _init.waits(model.init_lora_weights):
      raise ValueError(
          f'{who}: init_transform= has {name}, which may do anything, and so has'
          ' to be called; with'
          f' init_lora_weights={model.init_lora_weights!r} that may change the'
          ' base, which is wanted as it was before. Give the model another'
          ' init_lora_weights= here.'
      )
    shapes = _model_base.abstract(
        model.clone(quantize=None) if alone else model
    )
  else:
    shapes = _upstream.abstract_params(model)
  params = _called_base.call(model, init_transform, shapes, who=who)
  return _in_memory.open_params(params, name=f'{name}.transform')


def _opened(request: _prepare.Request, *, who: str) -> _open.Source:
  if request.new_to_old.get('params') is None:
    raise ValueError(
        f'{who}: init_transform= restores {dict(request.new_to_old)}: the base'
        " must come whole, as new_to_old={'params': …}."
    )
  source = _open.open_source(request.path, step=request.step, who=who)
  if _fingerprint.read_beside(source.path) is not None:
    raise ValueError(
        f'{who}: {source.path}, from which init_transform= restores, has LoRA'
        ' and no base.'
    )
  return source


def _usable(
    source: _open.Source,
    request: _prepare.Request,
    base: _model_base.ModelBase,
    *,
    who: str,
) -> Iterator[tuple[_trees.Path, _checkpoint_layouts.Stored]]:
  """Yields what the run may have taken, by canonical path."""
  old = _trees.segments(request.new_to_old['params'])
  leaves = [x for p, x in source.leaves.items() if p[: len(old)] == old]
  tree = base.tree(_quantized_leaves.group(leaves, who=who), old=old)
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
