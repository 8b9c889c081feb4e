"""Plans a restore before any array is read or freed."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import itertools
from typing import Any

from etils import epath
import jax
import numpy as np

from gemma4_lora import _trees
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.ckpts.restore import _policy
from gemma4_lora.ckpts.restore import _restore_plan
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.ckpts.sources import _quantized_leaves
from gemma4_lora.quant import _arrays

_OPTIONAL = 'collections'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """What to restore, and what to do about differences.

  Attributes:
    who: The transform that asks, for messages.
    path: Path of the checkpoint; see `PartialLoad`, also for the other fields.
    new_to_old: Sub-trees of the state, and of the checkpoint.
    step: Which checkpoint of a workdir.
    missing: Whether leaves that the checkpoint lacks are an error.
    unexpected: Whether leaves that nothing takes are an error.
    ignore_model_keys: Globs of leaves that the checkpoint may lack.
    ignore_restored_keys: Globs of leaves of the checkpoint not to take.
    nan: What to do about weights that are NaN.
    has_policy: Whether the transform has `missing=` and `unexpected=`.
    on_quantized: Called for each weight that is quantised as it is read, except
      for tables: with its path below the sub-tree, the weight as the file has
      it and its codes and scales, both on the host. The weight is then read
      whole.
  """

  who: str
  path: epath.PathLike
  new_to_old: Mapping[str, str]
  step: int = -1
  missing: _policy.Policy = 'error'
  unexpected: _policy.Policy = 'error'
  ignore_model_keys: tuple[str, ...] = ()
  ignore_restored_keys: tuple[str, ...] = ()
  nan: _policy.Policy = 'error'
  has_policy: bool = False
  on_quantized: Callable[[_trees.Path, np.ndarray, Any], None] | None = None


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
  source = _open.open_source(
      request.path, step=request.step, who=who, nan=request.nan
  )
  if _fingerprint.read_beside(source.path):
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
      spelled=source.spelled,
  )
  arrays = [y.stored for x in plan.loads for y in x.arrays]
  source.check({x.key for x in arrays}, who=who)
  return source, trees, plan


def _sub_trees(
    state: Any, source: _open.Source, request: Request
) -> Iterator[_restore_plan.SubTree]:
  """Pairs the sub-trees of the state with those of the checkpoint."""
  for a, b in itertools.permutations(request.new_to_old, 2):
    if _trees.segments(b)[: len(_trees.segments(a))] == _trees.segments(a):
      raise ValueError(
          f'{request.who}: new_to_old: {b!r} is within {a!r}, so that its leaves'
          ' have two sources: list sub-trees that do not overlap.'
      )
  for new, old in request.new_to_old.items():
    new_path, old_path = _trees.segments(new), _trees.segments(old)
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
