"""Opens a checkpoint: lists leaves without their data, reads some."""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from gemma4_lora import _trees
from gemma4_lora import host
from gemma4_lora.ckpts.sources import _bounded
from gemma4_lora.ckpts.sources import _checkpoint_layouts
from gemma4_lora.ckpts.sources import _contents
from gemma4_lora.ckpts.sources import _format_file
from gemma4_lora.ckpts.sources import _hugging_face
from gemma4_lora.ckpts.sources import _integrity
from gemma4_lora.ckpts.sources import _locate
from gemma4_lora.ckpts.sources import _source
from gemma4_lora.ckpts.sources import _stream
from gemma4_lora.host import _escapes
from gemma4_lora.host import _memory
from gemma4_lora.host import _paths
from gemma4_lora.host import _storage_errors
from gemma4_lora.host import _threads

Source = _source.Source
num_bytes = _source.num_bytes


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OrbaxSource(Source):
  """A checkpoint of Orbax.

  Attributes:
    tree: The tree as Orbax stores it, of array metadata.
    names: What the folder has.
    is_shared: Whether all arrays share files.
    whole: See `_stream.list_whole`.
  """

  tree: Any
  names: Collection[str]
  is_shared: bool
  whole: Callable[[], Mapping[str, _stream.Streamed]]

  def check(self, keys: set[_trees.Path], *, who: str) -> None:
    """See `Source`."""
    if self.is_shared:
      return  # It was checked when it was opened.
    names = [m.name for k, m in _trees.flatten(self.tree).items() if k in keys]
    _integrity.check_folders(self.path, names, who=who)

  def reader(
      self, key: _trees.Path, filled: _memory.Filled = _memory.filled
  ) -> Callable[[], Any] | None:
    """See `Source`."""
    whole = self._whole.get(_trees.get_at(self.tree, key).name)
    return None if whole is None else whole.begin(filled, self.look(key))

  def written(self, key: _trees.Path) -> _contents.Written | None:
    """See `Source`."""
    meta = _trees.get_at(self.tree, key)
    digest = self._digests.get(meta.name)
    if digest is None:
      return None
    return _contents.Written(digest, num_rows=(*meta.shape, 1)[0])

  @functools.cached_property
  def _digests(self) -> Mapping[str, str]:
    return _contents.read(self.path) if _contents.NAME in self.names else {}

  @functools.cached_property
  def _whole(self) -> Mapping[str, _stream.Streamed]:
    return self.whole()

  def _read_by_orbax(
      self, args: Mapping[_trees.Path, ocp.RestoreArgs]
  ) -> dict[_trees.Path, Any]:
    """See `Source`."""

    def pick(value):
      return lambda keys, meta: value(_trees.key_path(keys), meta)

    item = jax.tree_util.tree_map_with_path(
        pick(lambda k, meta: meta if k in args else ocp.PLACEHOLDER), self.tree
    )
    restore_args = jax.tree_util.tree_map_with_path(
        pick(lambda k, _: args.get(k, ocp.RestoreArgs())), self.tree
    )
    asked = ocp.args.PyTreeRestore(item=item, restore_args=restore_args)
    with _integrity.explained(self.path, who='restore'):
      restored = _bounded.call(
          lambda: _handler().restore(self.path, args=asked), directory=self.path
      )
    return {k: v for k, v in _trees.flatten(restored).items() if k in args}

  def _open_rows(self, key: _trees.Path) -> _stream.Rows | None:
    """See `Source`."""
    return _stream.open_rows(self.path, _trees.get_at(self.tree, key).name)


def open_source(
    path: epath.PathLike,
    *,
    step: int = -1,
    who: str,
    nan: _source.Policy | None = 'error',
) -> Source:
  """Opens a checkpoint and lists its leaves; reads no array.

  Args:
    path: See `_locate.locate`.
    step: Which checkpoint of a workdir; -1 for the last.
    who: The transform that asks, for messages.
    nan: See `Source`.

  Raises:
    FileNotFoundError: There is no checkpoint.
    ValueError: The checkpoint cannot be read.
    OSError: The bucket cannot be read; says why.
  """
  path = host.path(path, who=who)
  with _storage_errors.explained(path, who=who):
    source = _opened(path, step=step, who=who)
  return dataclasses.replace(source, nan=nan)


def _opened(path: epath.Path, *, step: int, who: str) -> Source:
  located = _locate.locate(path, step=step, who=who)
  directory, names = located.path, located.names
  if names is None or located.is_hugging_face:
    return _hugging_face.open_source(directory, names=names, who=who)
  _paths.check_orbax_can_read(directory, who=who)
  read_tree = functools.partial(
      _bounded.call,
      lambda: _handler().metadata(directory).tree,
      directory=directory,
      is_short=True,
  )
  whole = functools.partial(_stream.list_whole, directory)
  if not _paths.is_local(directory):
    # It takes a few answers after one another. What is wrong with the files is said
    # first; Orbax's own read, if it fails beside it, leaves callbacks that print.
    whole = _threads.started(whole)
  is_shared = _integrity.check(directory, names, who=who)
  try:
    tree = read_tree()
  except Exception as e:
    raise ValueError(
        f'{who}: cannot read the metadata of the checkpoint: {directory}:'
        f' {_escapes.escaped(str(e).partition(" [tensorstore_spec")[0])}'
    ) from e
  try:
    layout, leaves = _checkpoint_layouts.nested(_stored(tree))
  except ValueError as e:
    raise ValueError(f'{who}: {directory}: {e}') from e
  if _format_file.NAME in names:
    _format_file.check(directory, leaves, who=who)
  return OrbaxSource(
      path=directory,
      layout=layout,
      leaves={x.path: x for x in leaves},
      tree=tree,
      names=names,
      is_shared=is_shared,
      whole=whole,
  )


def _stored(tree: Any) -> Iterator[_checkpoint_layouts.Stored]:
  for key, meta in _trees.flatten(tree).items():
    if getattr(meta, 'dtype', None) is None:
      continue  # A string, which is no parameter.
    storage = getattr(meta, 'storage', None)
    yield _checkpoint_layouts.Stored(
        path=key,
        key=key,
        shape=tuple(getattr(meta, 'shape', None) or ()),
        dtype=np.dtype(meta.dtype),
        chunk_shape=storage.chunk_shape if storage else None,
    )


def _handler() -> ocp.PyTreeCheckpointHandler:
  # Orbax refuses an array that is larger than what it may hold at once. How
  # much is read at once is decided in `_read.py`.
  return ocp.PyTreeCheckpointHandler(restore_concurrent_gb=2**20)
