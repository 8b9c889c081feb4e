"""The one function that restores; every transform is a thin face on it."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from concurrent import futures
import dataclasses
import itertools
import os
import time
from typing import Any

from etils import epath
import jax
import numpy as np

from gemma4_lora import _trees
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.ckpts.restore import _policy
from gemma4_lora.ckpts.restore import _quantize_on_load
from gemma4_lora.ckpts.restore import _read
from gemma4_lora.ckpts.restore import _restore_log
from gemma4_lora.ckpts.restore import _restore_plan
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.ckpts.sources import _quantized_leaves
from gemma4_lora.gemma4 import _names
from gemma4_lora.host import _memory
from gemma4_lora.quant import _arrays

_OPTIONAL = 'collections'
# Giving memory back takes half a second.
_GIVE_BACK_BYTES = 2**28


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """What to restore, and what to do about differences.

  Attributes:
    who: The transform that asks, for messages.
    path: Where the checkpoint is: see `PartialLoad`, as for all that follows.
    new_to_old: Sub-trees of the state, and of the checkpoint.
    step: Which checkpoint of a workdir.
    missing: Whether leaves that the checkpoint lacks are an error.
    unexpected: Whether leaves that nothing takes are an error.
    ignore_model_keys: Globs of leaves that the checkpoint may lack.
    ignore_restored_keys: Globs of leaves of the checkpoint not to take.
    has_policy: Whether the transform has `missing=` and `unexpected=`.
    on_quantized: Called for each weight that is quantised as it is read, but for
      tables: with its path below the sub-tree, the weight as the file has it
      and its codes and scales, both on the host. The weight is then read whole.
  """

  who: str
  path: epath.PathLike
  new_to_old: Mapping[str, str]
  step: int = -1
  missing: _policy.Policy = 'error'
  unexpected: _policy.Policy = 'error'
  ignore_model_keys: tuple[str, ...] = ()
  ignore_restored_keys: tuple[str, ...] = ()
  has_policy: bool = False
  on_quantized: Callable[[_trees.Path, np.ndarray, Any], None] | None = None


def restore(state: Any, request: Request) -> Any:
  """Restores the base leaves of some sub-trees of a state.

  All is checked before any array of the state is touched. LoRA leaves are
  neither read nor written.

  Args:
    state: The state. Leaves may be arrays or `jax.ShapeDtypeStruct`s.
    request: What to restore.

  Returns:
    A state of the same structure, shapes, dtypes and shardings. Arrays of
    `state` that were replaced are freed.

  Raises:
    FileNotFoundError: There is no checkpoint at the path.
    ValueError: The checkpoint cannot be read or does not fit the model.
  """
  start = time.monotonic()
  source, trees, plan = prepare(state, request)

  old = {
      (*tree.new, *path): leaf
      for tree in trees
      for path, leaf in _trees.flatten(_trees.get_at(state, tree.new)).items()
  }
  _check_lora(old, who=request.who)
  kept = [x for x in plan.kept if _is_abstract(x, old)]
  _restore_log.warn(plan, kept=kept, who=request.who)
  missing = [x for x in plan.missing if _is_abstract(x, old)]
  absent = [*plan.pruned, *missing, *kept]
  new = {path: value for x in absent for path, value in _filled(x, old).items()}
  replaced = new.keys() | {
      y.path for x in plan.loads for y in x.model.parts.values()
  }
  in_use = {
      id(x) for p, x in _trees.flatten(state).items() if p not in replaced
  }
  quantizing = {x.model.path: x for x in plan.quantized}
  made: dict[_trees.Path, _quantized_leaves.Quality] = {}

  def put(path, value):
    _free(old[path], in_use)
    new[path] = jax.block_until_ready(_read.place(value, old[path]))
    return value.nbytes

  held = 0  # What was quantised since memory was given back, at most.
  with (
      _restore_log.progress(plan) as progress,
      futures.ThreadPoolExecutor(os.cpu_count()) as pool,
  ):
    whole = request.on_quantized is not None
    placing: list[futures.Future[int]] = []
    for group in _read.read(source, plan.loads, old, whole=whole):
      # One group is placed while the next is read.
      progress.update(sum(x.result() for x in placing))
      placing = []
      while group:
        path, value = group.popitem()
        load = quantizing.get(path)
        encoding = None if load is None else load.model.encoding
        if load is None or encoding is None:
          placing.append(pool.submit(put, path, value))
        else:
          quantized = _quantize_on_load.quantize(value, encoding)
          made[path] = quantized.quality
          if request.on_quantized is not None and not _names.is_table(
              load.model.rel
          ):
            request.on_quantized(load.model.rel, value, quantized.value)
          for part, array in _trees.flatten(quantized.value).items():
            put((*path, *part), array)
            del array
          progress.update(_open.num_bytes(load.stored))
          held += _open.num_bytes(load.stored)
          del quantized
        del value  # On the host: not held while others are read.
      if held > _GIVE_BACK_BYTES:
        _memory.give_back()
        held = 0
    progress.update(sum(x.result() for x in placing))
  for leaf in plan.pruned:
    for part in leaf.parts.values():
      _free(old[part.path], in_use)

  for tree in trees:
    state = _replace_leaves(state, tree.new, new)
  seconds = time.monotonic() - start
  _restore_log.log(plan, source, made, who=request.who, seconds=seconds)
  return state


def prepare(
    state: Any, request: Request
) -> tuple[_open.Source, list[_restore_plan.SubTree], _restore_plan.Plan]:
  """Decides what a restore will do; reads no array.

  Args:
    state: The state; arrays or shapes.
    request: What to restore.

  Returns:
    The checkpoint, the sub-trees, and the plan.

  Raises:
    FileNotFoundError: There is no checkpoint at the path.
    ValueError: The checkpoint cannot be read or does not fit the model.
  """
  who = request.who
  source = _open.open_source(request.path, step=request.step, who=who)
  if _fingerprint.read(source.path.parent):
    raise ValueError(
        f'{who}: {source.path} has LoRA leaves and no base model, as'
        ' g4.ckpts.LoRACheckpointer saves them. Restore the base from what that'
        ' run started from (its init_transform=), and the LoRA leaves with'
        ' g4.ckpts.LoadLoRA(path=…).'
    )
  trees = list(_sub_trees(state, source, request))
  try:
    plan = _restore_plan.make_plan(
        trees,
        ignore_model_keys=request.ignore_model_keys,
        ignore_restored_keys=request.ignore_restored_keys,
    )
  except ValueError as e:
    raise ValueError(f'{who}: {e}') from e
  _policy.check(
      plan,
      trees,
      who=who,
      where=str(source.path),
      missing=request.missing,
      unexpected=request.unexpected,
      has_policy=request.has_policy,
  )
  arrays = [y.stored for x in plan.loads for y in x.arrays]
  source.check({x.key for x in arrays}, who=who)
  return source, trees, plan


def _sub_trees(
    state: Any, source: _open.Source, request: Request
) -> Iterator[_restore_plan.SubTree]:
  """Pairs the sub-trees of the state with those of the checkpoint."""
  for a, b in itertools.permutations(request.new_to_old, 2):
    if _trees.parts(b)[: len(_trees.parts(a))] == _trees.parts(a):
      raise ValueError(
          f'{request.who}: new_to_old: {b!r} is within {a!r}, so that its leaves'
          ' have two sources: list sub-trees that do not overlap.'
      )
  for new, old in request.new_to_old.items():
    new_path, old_path = _trees.parts(new), _trees.parts(old)
    is_optional = new == old == _OPTIONAL
    try:
      sub_state = _trees.get_at(state, new_path)
    except KeyError as e:
      if is_optional:
        continue
      names = {
          _trees.join(p[:i]) for p in _trees.flatten(state) for i in range(1, 5)
      }
      raise ValueError(
          f'{request.who}: new_to_old: the state has no'
          f' {new!r}.{_policy.did_you_mean(new, sorted(names))}'
      ) from e
    stored = tuple(
        x for p, x in source.leaves.items() if p[: len(old_path)] == old_path
    )
    if not stored and not is_optional:
      names = {_trees.join(p[:i]) for p in source.leaves for i in range(1, 5)}
      raise ValueError(
          f'{request.who}: new_to_old: the checkpoint has no {old!r}; it has'
          f' {sorted({p[0] for p in source.leaves})}.'
          f'{_policy.did_you_mean(old, sorted(names))}'
      )
    _check_leaves(_trees.flatten(sub_state), new, who=request.who)
    yield _restore_plan.SubTree(
        new=new_path,
        old=old_path,
        model=tuple(
            _model_leaf(new_path, path, leaf)
            for path, leaf in _trees.flatten(
                sub_state, is_leaf=_arrays.is_quantized
            ).items()
        ),
        stored=_quantized_leaves.group(stored, who=request.who),
    )


def _model_leaf(
    root: _trees.Path, path: _trees.Path, leaf: Any
) -> _restore_plan.ModelLeaf:
  encoding = None
  if _arrays.is_quantized(leaf):
    encoding, leaf = _arrays.encoding_of(leaf), _arrays.codes_of(leaf)
  return _restore_plan.ModelLeaf(
      path=(*root, *path),
      rel=path,
      shape=leaf.shape,
      dtype=leaf.dtype,
      encoding=encoding,
  )


def _check_leaves(
    leaves: Mapping[_trees.Path, Any], root: str, *, who: str
) -> None:
  """Checks that the leaves of a sub-tree are arrays that can be replaced."""
  for path, leaf in leaves.items():
    name = f'{root}.{_trees.join(path)}'
    if isinstance(leaf, jax.core.Tracer):
      raise ValueError(
          f'{who}: {name} is being traced: call the transform outside of'
          ' `jax.jit`, as `trainer.init_state()` does.'
      )
    if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct, np.ndarray)):
      raise ValueError(
          f'{who}: {name} is no array but a {type(leaf).__name__}: {leaf!r}.'
      )


def _check_lora(old: Mapping[_trees.Path, Any], *, who: str) -> None:
  """Checks that LoRA leaves, which no base checkpoint has, have values."""
  for path, leaf in old.items():
    if _trees.is_lora(path) and isinstance(leaf, jax.ShapeDtypeStruct):
      raise ValueError(
          f'{who}: {_trees.join(path)} is a LoRA leaf without a value'
          ' (ShapeDtypeStruct), and the checkpoint gives it none: initialise'
          ' LoRA leaves first.'
      )


def _is_abstract(
    leaf: _restore_plan.ModelLeaf, old: Mapping[_trees.Path, Any]
) -> bool:
  """Whether a leaf of the state has no value."""
  return any(
      isinstance(old[x.path], jax.ShapeDtypeStruct) for x in leaf.parts.values()
  )


def _filled(
    leaf: _restore_plan.ModelLeaf, old: Mapping[_trees.Path, Any]
) -> dict[_trees.Path, Any]:
  """Returns the fixed value of a leaf that the checkpoint does not have."""
  value: Any = _names.fill_value(leaf.path)
  if leaf.encoding is None:
    host = np.broadcast_to(np.asarray(value, leaf.dtype), leaf.shape)
    return {leaf.path: _read.place(host, old[leaf.path])}
  parts = _trees.flatten(
      _quantize_on_load.fill(value, leaf.shape, leaf.encoding)
  )
  paths = {part: (*leaf.path, *part) for part in parts}
  return {paths[p]: _read.place(x, old[paths[p]]) for p, x in parts.items()}


def _free(array: Any, in_use: set[int]) -> None:
  """Frees an array of the old state, unless the state has it elsewhere too."""
  if isinstance(array, jax.Array) and id(array) not in in_use:
    array.delete()


def _replace_leaves(
    state: Any, root: _trees.Path, new: Mapping[_trees.Path, Any]
) -> Any:
  sub_state = jax.tree_util.tree_map_with_path(
      lambda keys, leaf: new.get((*root, *_trees.key_path(keys)), leaf),
      _trees.get_at(state, root),
  )
  return _trees.replace_at(state, root, sub_state)
