"""Shapes of a batch: from the data where it is at hand, else from the config."""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from etils import enp
from etils import epath
from gemma import gm
from gemma.gm.utils import _file_cache
import jax
from kauldron import kd
from kauldron import kontext
import numpy as np

from gemma4_lora.data import _pipeline
from gemma4_lora.tpu import _errors

_OVERRIDES = 'Give batch= and length= (--batch=, --length=, in tokens).'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
  """Shapes of one batch over all devices.

  Attributes:
    spec: Nested dict of `enp.ArraySpec`.
    batch: How many examples.
    length: Tokens per sequence; None where the model reads no tokens.
    sequences: Sequences per example: 2 of a preference pair.
    note: Where the shapes are from, if not from the data.
  """

  spec: Any
  batch: int
  length: int | None
  sequences: int = 1
  note: str | None = None

  @property
  def num_tokens(self) -> int:
    """Number of tokens in all sequences."""
    return self.batch * self.sequences * (self.length or 1)


def batch_of(
    trainer: kd.train.Trainer,
    *,
    batch: int | None = None,
    length: int | None = None,
) -> Batch:
  """Returns the shapes of the batches that a Trainer trains on.

  Args:
    trainer: Its `train_ds` is read if it is on this machine. If not, shapes
      come from the fields of the config.
    batch: Another number of sequences than the config's.
    length: Another length, in tokens.

  Raises:
    PlanError: The shapes cannot be known.
  """
  for name, value in (('batch', batch), ('length', length)):
    if value is not None and value < 1:
      raise _errors.PlanError(f'{name}={value}: at least 1.')
  reason = next(_absent(trainer.train_ds), None)
  if reason is None:
    try:
      return _read(trainer, batch=batch, length=length)
    except _errors.PlanError:
      raise
    except Exception as e:  # Whatever a pipeline of the user's may raise.
      reason = f'reading it gave {type(e).__name__}: {str(e)[:200]}'
  return _from_config(trainer, batch=batch, length=length, reason=reason)


def _read(
    trainer: kd.train.Trainer, *, batch: int | None, length: int | None
) -> Batch:
  """Returns the first batch of the data, in other sizes if asked for."""
  spec = jax.tree.map(_on_device, trainer.train_ds.element_spec)
  tokens = _tokens(trainer, spec)
  if tokens is None:
    if length is not None:
      raise _errors.PlanError(
          f'length={length}, but the model reads no tokens of the batch: which'
          ' of its sizes is the length is not known. Change it in the config.'
      )
    old_batch, longer = jax.tree.leaves(spec)[0].shape[0], 0
  else:
    old_batch, old_length = tokens.shape[0], tokens.shape[-1]
    length = length or old_length
    longer = length - old_length
  batch = batch or old_batch

  def resized(x: Any) -> Any:
    if not isinstance(x, enp.ArraySpec):  # Images: with a length of their own.
      return jax.tree.map(lambda y: _with_batch(y, old_batch, batch), x)
    x = _with_batch(x, old_batch, batch)
    shape = list(x.shape)
    # Targets and masks are as long as the tokens, or one longer or shorter.
    if tokens is not None and _is_along(x, tokens):
      shape[len(tokens.shape) - 1] += longer
    return enp.ArraySpec(shape=tuple(shape), dtype=x.dtype)

  return Batch(
      spec=jax.tree.map(resized, spec, is_leaf=_is_field),
      batch=batch,
      length=length,
      sequences=1 if tokens is None else math.prod(tokens.shape[1:-1]),
  )


def _is_field(x: Any) -> bool:
  return not isinstance(x, Mapping | list | tuple)


def _with_batch(x: enp.ArraySpec, old: int, new: int) -> enp.ArraySpec:
  shape = (new, *x.shape[1:]) if x.shape and x.shape[0] == old else x.shape
  return enp.ArraySpec(shape=shape, dtype=x.dtype)


def _tokens(trainer: kd.train.Trainer, spec: Any) -> enp.ArraySpec | None:
  """Returns what the model reads its tokens from: `[B, L]`, pairs `[B, 2, L]`."""
  key = kontext.get_keypaths(trainer.model).get('tokens')
  if not isinstance(key, str):
    return None
  found = kontext.get_by_path({'batch': spec}, key, default=None)
  is_known = found is not None and _is_tokens(found)
  return found if is_known else None


def _is_tokens(x: enp.ArraySpec) -> bool:
  """Not of labels, `[B, L, 1]`."""
  return len(x.shape) == 2 or len(x.shape) == 3 and x.shape[-1] > 1


def _is_along(x: enp.ArraySpec, tokens: enp.ArraySpec) -> bool:
  """Whether an array has an entry, or some, for each of the tokens."""
  axis = len(tokens.shape) - 1
  if x.shape[1:axis] != tokens.shape[1:axis] or len(x.shape) <= axis:
    return False
  return abs(x.shape[axis] - tokens.shape[axis]) <= 1


def _on_device(x: enp.ArraySpec) -> enp.ArraySpec:
  """64 bits become 32, as they do when jax takes an array."""
  dtype = jax.dtypes.canonicalize_dtype(x.dtype)
  return enp.ArraySpec(shape=x.shape, dtype=dtype)


def _from_config(
    trainer: kd.train.Trainer,
    *,
    batch: int | None,
    length: int | None,
    reason: str,
) -> Batch:
  """From what transforms, model and losses say that they write and read."""
  writer = _writer(trainer.train_ds)
  task = _task(trainer.train_ds)
  batch = batch or getattr(trainer.train_ds, 'batch_size', None)
  if writer is not None and batch:
    return _of_writer(trainer, writer.field_specs(length), batch, reason=reason)
  length = length or getattr(task, 'max_length', None)
  if not batch or not length:
    lacks = [n for n, x in (('batch', batch), ('length', length)) if not x]
    raise _errors.PlanError(
        f'The {" and the ".join(lacks)} cannot be known: train_ds is not read'
        f' ({reason}), and the config has no train_ds.batch_size and no task'
        f' with a max_length for it. {_OVERRIDES}'
    )
  spec: dict[str, Any] = {}
  for key, (shape, dtype) in _fields(trainer, task).items():
    shape = (batch, length, *shape)
    array = enp.ArraySpec(shape=shape, dtype=np.dtype(dtype))
    kontext.set_by_path(spec, key, array)
  return Batch(spec=spec, batch=batch, length=length, note=_note(reason))


def _note(reason: str) -> str:
  return f"shapes of the batch are the config's: {reason}"


def _of_writer(
    trainer: kd.train.Trainer,
    fields: Mapping[str, Any],
    batch: int,
    *,
    reason: str,
) -> Batch:
  """From what a task says of its own output."""
  spec: dict[str, Any] = {}
  for key, specs in fields.items():
    batched = jax.tree.map(
        lambda x: enp.ArraySpec(shape=(batch, *x.shape), dtype=x.dtype), specs
    )
    kontext.set_by_path(spec, key, batched)
  tokens = _tokens(trainer, spec)
  return Batch(
      spec=spec,
      batch=batch,
      length=None if tokens is None else tokens.shape[-1],
      sequences=1 if tokens is None else math.prod(tokens.shape[1:-1]),
      note=_note(reason),
  )


def _fields(
    trainer: kd.train.Trainer, task: gm.data.Seq2SeqTask | None
) -> Mapping[str, tuple[tuple[int, ...], Any]]:
  """Axes after batch and length, and dtype, of what the step reads."""
  if task is not None:
    return {
        task.out_input: ((), np.int32),
        task.out_target: ((1,), np.int32),
        task.out_target_mask: ((1,), np.bool_),
    }
  known = {
      'tokens': ((), np.int32),
      'labels': ((1,), np.int32),
      'mask': ((1,), np.bool_),
  }
  fields, unknown = {}, []
  readers = [
      trainer.model,
      *trainer.train_losses.values(),
      *trainer.train_metrics.values(),
      *trainer.train_summaries.values(),
  ]
  for reader in readers:
    for name, key in kontext.flatten_with_path(
        kontext.get_keypaths(reader)
    ).items():
      if not isinstance(key, str) or not key.startswith('batch.'):
        continue
      if name in known:
        fields[key.removeprefix('batch.')] = known[name]
      else:
        unknown.append(f'{type(reader).__name__}.{name}={key!r}')
  if unknown or not fields:
    raise _errors.PlanError(
        'Shapes of the batch cannot be known without the data: what shape has'
        f' {", ".join(unknown) or "what the model reads"}? Plan where train_ds'
        ' can be read, or with a task such as g4.data.ChatTask in it.'
    )
  return fields


def _task(ds: Any) -> gm.data.Seq2SeqTask | None:
  """Returns the transform that writes tokens, targets and mask."""
  tasks = [x for x in _pipeline.walk(ds) if isinstance(x, gm.data.Seq2SeqTask)]
  return tasks[-1] if tasks else None


def _writer(ds: Any) -> Any:
  """Returns what says the shapes that it writes, as the tasks of `g4.data` do.

  The outermost: a source of packed rows has a task within it.
  """
  writers = [x for x in _pipeline.walk(ds) if hasattr(type(x), 'field_specs')]
  inner = {id(y) for x in writers for y in _pipeline.walk(x) if y is not x}
  outer = [x for x in writers if id(x) not in inner]
  return outer[-1] if outer else None


def _absent(ds: Any) -> Iterator[str]:
  """Gives what would have to be downloaded to read a pipeline."""
  for part in _pipeline.walk(ds):
    # By name: Kauldron has two, one of which is not always there.
    if type(part).__name__ == 'Tfds':
      if not _is_prepared(part.name, part.data_dir):
        yield f'{part.name} of TFDS is not on this machine'
    elif isinstance(part, kd.data.py.HuggingFace):
      yield f'{part.path} is a dataset of Hugging Face'
    elif isinstance(part, gm.text.Tokenizer):
      path = _file_cache.maybe_get_from_cache(
          remote_file_path=part.path, cache_subdir='tokenizer'
      )
      if str(path).startswith('gs://'):
        yield f'the tokenizer {path} is not on this machine'


def _is_prepared(name: str, data_dir: Any) -> bool:
  """Whether TFDS has a dataset on disk."""
  import tensorflow_datasets as tfds  # pylint: disable=g-import-not-at-top

  folder = data_dir or tfds.core.constants.DATA_DIR
  if str(folder).startswith('gs://'):
    return False
  folder = epath.Path(folder).expanduser()
  return folder.joinpath(name.partition('/')[0]).exists()
