"""The plan of a restore, as data: made from shapes, before any read."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from kauldron import kontext
from kauldron.kontext import path_parser
import numpy as np

from gemma4_lora import _trees
from gemma4_lora.ckpts.restore import _kv_sharing
from gemma4_lora.ckpts.sources import _checkpoint_layouts
from gemma4_lora.gemma4 import _names
from gemma4_lora.quant import _format


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelLeaf:
  """A leaf of the state.

  Attributes:
    path: Its path in the state: `('params', 'layer_0', …)`.
    rel: Its path in the sub-tree that is restored: `('layer_0', …)`.
    shape: Its shape.
    dtype: Its dtype; if it is quantised, the dtype of the codes.
    encoding: How it is quantised; `None` if it is not.
  """

  path: _trees.Path
  rel: _trees.Path
  shape: tuple[int, ...]
  dtype: np.dtype
  encoding: _format.Encoding | None = None

  @property
  def name(self) -> str:
    return _trees.join(self.path)

  @functools.cached_property
  def parts(self) -> dict[_trees.Path, 'ModelLeaf']:
    """Its arrays in the state, by path below its own."""
    if self.encoding is None:
      return {(): self}
    return {
        part: ModelLeaf(
            path=(*self.path, *part),
            rel=(*self.rel, *part),
            shape=x.shape,
            dtype=np.dtype(x.dtype),
        )
        for part, x in _trees.flatten(
            self.encoding.abstract(self.shape)
        ).items()
    }


Leaf = ModelLeaf | _checkpoint_layouts.Stored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
  """A leaf of the state and the leaf of the checkpoint that it takes."""

  model: ModelLeaf
  stored: _checkpoint_layouts.Stored

  @property
  def quantizes(self) -> bool:
    """Whether the value is to be quantised when it is read."""
    return self.model.encoding is not None and self.stored.encoding is None

  @property
  def arrays(self) -> Iterable['Load']:
    """The same for each array, for codes and scales in the checkpoint."""
    if self.stored.encoding is None:
      return (self,)
    return tuple(
        Load(model=self.model.parts[x.path[len(self.stored.path) :]], stored=x)
        for x in self.stored.parts
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubTree:
  """A sub-tree of the state and the one of the checkpoint that it takes.

  Attributes:
    new: Path of the sub-tree in the state.
    old: Path of the sub-tree in the checkpoint.
    model: Leaves of the state below `new`, LoRA leaves included.
    stored: Leaves of the checkpoint below `old`.
  """

  new: _trees.Path
  old: _trees.Path
  model: tuple[ModelLeaf, ...]
  stored: tuple[_checkpoint_layouts.Stored, ...]

  def relative(self, leaf: Leaf) -> _trees.Path:
    if isinstance(leaf, ModelLeaf):
      return leaf.rel
    return leaf.path[len(self.old) :]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """The result of matching, for each leaf.

  Attributes:
    loads: Base leaves of the state that take a value from the checkpoint, of
      the same shape and of a dtype that converts.
    mismatched: Leaves whose shapes differ.
    wrong_dtype: Leaves whose dtypes do not convert.
    wrong_format: Those that the checkpoint holds quantised, and the model not or
      otherwise.
    missing: Base leaves that the checkpoint lacks.
    pruned: Base leaves that it lacks because their layer is KV-shared.
    kept: Base leaves that an `ignore_*` glob leaves as they are.
    unexpected: Leaves of the checkpoint that nothing takes.
    left_out: Leaves of the checkpoint that nothing should take, by reason.
    unmatched_globs: The `ignore_*` globs that match no leaf, by argument, each
      with the names that it was tried on.
  """

  loads: tuple[Load, ...] = ()
  mismatched: tuple[Load, ...] = ()
  wrong_dtype: tuple[Load, ...] = ()
  wrong_format: tuple[Load, ...] = ()
  missing: tuple[ModelLeaf, ...] = ()
  pruned: tuple[ModelLeaf, ...] = ()
  kept: tuple[ModelLeaf, ...] = ()
  unexpected: tuple[_checkpoint_layouts.Stored, ...] = ()
  left_out: Mapping[str, tuple[_checkpoint_layouts.Stored, ...]] = (
      dataclasses.field(default_factory=dict)
  )
  unmatched_globs: tuple[tuple[str, str, tuple[str, ...]], ...] = ()

  @functools.cached_property
  def converted(self) -> tuple[Load, ...]:
    return tuple(
        x
        for x in self.loads
        if x.model.encoding is None and x.model.dtype != x.stored.dtype
    )

  @functools.cached_property
  def quantized(self) -> tuple[Load, ...]:
    return tuple(x for x in self.loads if x.quantizes)

  def __str__(self) -> str:
    rows = [
        ('loaded', self.loads),
        ('of these converted', self.converted),
        ('of these quantised', self.quantized),
        ('shape mismatch', self.mismatched),
        ('dtype mismatch', self.wrong_dtype),
        ('quantised otherwise', self.wrong_format),
        ('missing', self.missing),
        ('filled: KV-shared', self.pruned),
        ('kept: ignored', self.kept),
        ('unexpected', self.unexpected),
        *((f'left out: {k}', v) for k, v in self.left_out.items()),
    ]
    return '\n'.join(f'{len(v):6} {k}' for k, v in rows if v)


# Reasons to leave a leaf of the checkpoint out.
LORA = 'LoRA leaves'
IGNORED = 'leaves that ignore_restored_keys names'
SHARED_KV = 'k, v and key norms of KV-shared layers'
TOWERS = 'leaves of towers that the model does not have'


def make_plan(
    trees: Sequence[SubTree],
    *,
    ignore_model_keys: Iterable[str] = (),
    ignore_restored_keys: Iterable[str] = (),
) -> Plan:
  """Matches the leaves of a state to those of a checkpoint.

  Args:
    trees: The sub-trees to match.
    ignore_model_keys: Globs of leaves of the state that the checkpoint may
      lack.
    ignore_restored_keys: Globs of leaves of the checkpoint not to take.

  Returns:
    The plan, over all sub-trees.
  """
  model_globs = _parse('ignore_model_keys', ignore_model_keys)
  stored_globs = _parse('ignore_restored_keys', ignore_restored_keys)
  plans = [_plan_tree(t, model_globs, stored_globs) for t in trees]
  unmatched = (
      *_unmatched(
          'ignore_model_keys',
          model_globs,
          [t.relative(x) for t in trees for x in t.model],
      ),
      *_unmatched(
          'ignore_restored_keys',
          stored_globs,
          [t.relative(x) for t in trees for x in t.stored],
      ),
  )
  left_out: dict[str, tuple[_checkpoint_layouts.Stored, ...]] = {}
  for plan in plans:
    for reason, leaves in plan.left_out.items():
      left_out[reason] = (*left_out.get(reason, ()), *leaves)

  def concat(field):
    return tuple(x for p in plans for x in getattr(p, field))

  return Plan(
      left_out=left_out,
      unmatched_globs=unmatched,
      **{
          field: concat(field)
          for field in (
              'loads',
              'mismatched',
              'wrong_dtype',
              'wrong_format',
              'missing',
              'pruned',
              'kept',
              'unexpected',
          )
      },
  )


def _plan_tree(tree: SubTree, model_globs, stored_globs) -> Plan:
  """Makes the plan of one sub-tree."""

  def key(leaf):
    return _names.canonical(tree.relative(leaf))

  def matches(globs, leaf):
    return any(_matches(tree.relative(leaf), g) for g in globs.values())

  model = {key(x): x for x in tree.model if not _trees.is_lora(x.path)}
  left_out = {
      LORA: [x for x in tree.stored if _trees.is_lora(x.path)],
  }
  stored = {key(x): x for x in tree.stored if not _trees.is_lora(x.path)}

  ignored = {k: x for k, x in stored.items() if matches(stored_globs, x)}
  left_out[IGNORED] = list(ignored.values())
  # As in `PartialKauldronLoader`, a leaf whose value is ignored is not missing.
  kept = {k: model[k] for k in ignored if k in model}
  absent = {k: x for k, x in model.items() if k not in stored}
  kept |= {k: x for k, x in absent.items() if matches(model_globs, x)}
  absent = {k: x for k, x in absent.items() if k not in kept}
  shapes = {k: x.shape for k, x in model.items()}
  pruned = _kv_sharing.prunable(shapes, stored.keys()) & absent.keys()

  extra = {
      k: x for k, x in stored.items() if k not in model and k not in ignored
  }
  shapes = {k: x.shape for k, x in stored.items()}
  redundant = _kv_sharing.prunable(shapes, model.keys()) & extra.keys()
  left_out[SHARED_KV] = [extra.pop(k) for k in sorted(redundant)]
  towers = {_names.tower_of(k) for k in model}
  foreign = [k for k in extra if _names.tower_of(k) not in {*towers, None}]
  left_out[TOWERS] = [extra.pop(k) for k in foreign]

  pairs = [
      Load(model=x, stored=stored[k])
      for k, x in model.items()
      if k in stored and k not in ignored
  ]
  same_shape = [x for x in pairs if x.model.shape == x.stored.shape]
  same_format = [x for x in same_shape if _is_readable(x)]
  return Plan(
      loads=tuple(x for x in same_format if _converts(x)),
      wrong_dtype=tuple(x for x in same_format if not _converts(x)),
      wrong_format=tuple(x for x in same_shape if not _is_readable(x)),
      mismatched=tuple(x for x in pairs if x.model.shape != x.stored.shape),
      missing=tuple(x for k, x in absent.items() if k not in pruned),
      pruned=tuple(x for k, x in absent.items() if k in pruned),
      kept=tuple(kept.values()),
      unexpected=tuple(extra.values()),
      left_out={k: tuple(v) for k, v in left_out.items() if v},
  )


def _is_readable(load: Load) -> bool:
  """Whether checkpoint and model quantise the leaf in the same way."""
  return load.stored.encoding in (None, load.model.encoding)


def _converts(load: Load) -> bool:
  """Whether the value may be cast while it is read: from float to float."""
  if load.stored.encoding is not None:
    return True
  if load.quantizes:
    return _is_float(load.stored.dtype)
  # Not `np.issubdtype`, for which bfloat16 is not a float.
  dtypes = {load.model.dtype, load.stored.dtype}
  return len(dtypes) == 1 or all(_is_float(d) for d in dtypes)


def _is_float(dtype: np.dtype) -> bool:
  # numpy's own `issubdtype` takes bfloat16 for no float.
  return jnp.issubdtype(dtype, jnp.floating)


def _parse(arg: str, globs: Iterable[str]) -> dict[str, kontext.GlobPath]:
  parsed = {}
  for glob in globs:
    try:
      parsed[glob] = kontext.GlobPath.from_str(glob)
    except Exception as e:
      raise ValueError(
          f'{arg}: {glob!r} is not a glob of kontext: a segment is a whole name,'
          " '*' (any one segment) or '**' (any number of them), as in"
          " '**.mlp.linear'."
      ) from e
  return parsed


def _matches(path: _trees.Path, glob: kontext.GlobPath) -> bool:
  """Whether the glob selects the leaf, or a tree that it is in."""
  spellings = [path]
  if _names.canonical((*path, 'w')) == _names.canonical(path):
    spellings.append((*path, 'w'))  # As released checkpoints have it.
  return any(_select(glob.parts, spelling) for spelling in spellings)


def _select(glob: Sequence[Any], path: _trees.Path) -> bool:
  """Matches segment by segment.

  `kontext.filter_by_path` does the same on trees, but raises where a branch
  ends before the glob does.

  Args:
    glob: Segments of the glob that are left.
    path: Segments of the path that are left.
  """
  if not glob:
    return True
  part, *rest = glob
  if part == path_parser.Wildcard.DOUBLE_STAR:
    return any(_select(rest, path[i:]) for i in range(len(path) + 1))
  if not path or (part != path_parser.Wildcard.STAR and str(part) != path[0]):
    return False
  return _select(rest, path[1:])


def _unmatched(
    arg: str, globs: dict[str, kontext.GlobPath], paths: Sequence[_trees.Path]
) -> Iterable[tuple[str, str, tuple[str, ...]]]:
  for text, glob in globs.items():
    if not any(_matches(p, glob) for p in paths):
      yield arg, text, tuple(_trees.join(p) for p in paths)
