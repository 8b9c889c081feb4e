"""The only function that restores; all transforms call it."""

from collections.abc import Mapping
from concurrent import futures
import os
import time
from typing import Any

import jax

from gemma4_lora import _trees
from gemma4_lora import host
from gemma4_lora.ckpts.restore import _placing
from gemma4_lora.ckpts.restore import _prepare
from gemma4_lora.ckpts.restore import _quantizing
from gemma4_lora.ckpts.restore import _read
from gemma4_lora.ckpts.restore import _restore_log
from gemma4_lora.ckpts.restore import _restore_plan
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.host import _memory
from gemma4_lora.host import _storage_errors


def restore(state: Any, request: _prepare.Request) -> Any:
  """Restores the base leaves of some sub-trees of a state.

  Everything is checked before any array of the state is touched. LoRA leaves
  are neither read nor written.

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
  source, trees, plan = _prepare.prepare(state, request)
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

  replaced = [*absent, *(x.model for x in plan.loads)]
  placing = _placing.Placing(old, state=state, replaced=replaced)
  quantizing = _quantizing.Quantizing(
      plan.quantized, placing, request.on_quantized
  )
  for leaf in absent:
    placing.fill(leaf)
  whole = request.on_quantized is not None
  with _storage_errors.explained(source.path, who=request.who):
    _carry_out(source, plan, placing, quantizing, whole=whole)
  for leaf in plan.pruned:
    placing.free(leaf)

  for tree in trees:
    state = _replace_leaves(state, tree.new, placing.new)
  seconds = time.monotonic() - start
  _restore_log.log(
      plan, source, quantizing.made, who=request.who, seconds=seconds
  )
  return state


def _carry_out(
    source: _open.Source,
    plan: _restore_plan.Plan,
    placing: _placing.Placing,
    quantizing: _quantizing.Quantizing,
    *,
    whole: bool,
) -> None:
  """Reads and places all leaves of a plan, or quantises them in between."""
  trimming = _Trimming(source, plan)
  with (
      _restore_log.progress(plan) as progress,
      futures.ThreadPoolExecutor(os.cpu_count()) as pool,
  ):
    started: list[futures.Future[int]] = []
    for group in _read.read(source, plan.loads, placing.old, whole=whole):
      # One group is placed while the next is read.
      placed = sum(x.result() for x in started)
      progress.update(placed)
      trimming.update(placed)
      started = []
      while group:
        path, value = group.popitem()
        if path in quantizing:
          progress.update(quantizing.put(path, value))
        else:
          started.append(pool.submit(placing.put, path, value))
        del value  # On the host: not held while others are read.
      quantizing.give_back()
    progress.update(sum(x.result() for x in started))


class _Trimming:
  """Gives memory back when most is placed, and each time half of the rest is.

  Data from a bucket passes through the memory of many threads, and the C
  library keeps some memory for each. There is room for it while much is still
  to be placed.
  """

  def __init__(self, source: _open.Source, plan: _restore_plan.Plan):
    self._left = sum(_open.num_bytes(x.stored) for x in plan.loads)
    self._next = 0 if host.is_local(source.path) else self._left // 4

  def update(self, placed: int) -> None:
    self._left -= placed
    if 0 < self._left < self._next:
      _memory.trim()
      self._next = self._left // 2


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


def _replace_leaves(
    state: Any, root: _trees.Path, new: Mapping[_trees.Path, Any]
) -> Any:
  sub_state = jax.tree_util.tree_map_with_path(
      lambda keys, leaf: new.get((*root, *_trees.key_path(keys)), leaf),
      _trees.get_at(state, root),
  )
  return _trees.replace_at(state, root, sub_state)
