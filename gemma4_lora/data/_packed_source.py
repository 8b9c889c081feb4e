"""Several conversations in a row of tokens, as a source of rows."""

import dataclasses
import functools
from typing import Any
from typing import SupportsIndex

from absl import logging
from grain import python as grain
from kauldron import kd
import numpy as np

from gemma4_lora.data import _chat_task
from gemma4_lora.data import _first_fit
from gemma4_lora.data import _recent_texts
from gemma4_lora.data import _text_task
from gemma4_lora.data import _tokens
from gemma4_lora.data.sources import _passed_transforms

_TASKS = (_chat_task.ChatTask, _text_task.TextTask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedSource(grain.RandomAccessDataSource):
  """Rows of several conversations each, packed by first-fit decreasing.

  ```python
  train_ds=kd.data.py.DataSource(
      data_source=g4.data.PackedSource(
          data_source=kd.data.py.Json(path="chats.json", shuffle=False),
          transforms=[
              g4.data.ChatTask(layout="messages", max_length=4096, ...),
          ],
      ),
      shuffle=True,
      batch_size=16,
  ),
  model=g4.nn.LoRA(..., positions="batch.positions"),
  ```

  Without the model's `positions=`, attention would cross conversations of a
  row.

  Each row has the fields of `ChatTask` for several conversations, concatenated,
  and `positions`, which restart at 0. No token is trained to predict the first
  token of the next conversation. Other fields are left out.

  The packing is planned once, when the first row is read: all conversations are
  tokenized to get their lengths. The plan depends only on the data and the
  task, so that all hosts and worker processes have the same rows. Kauldron
  shards, shuffles and resumes rows as those of any source.

  Attributes:
    data_source: Source of conversations: a grain source, or a Kauldron dataset
      (`Json`, `Tfds`, `HuggingFace`, ...), whose source is read, unshuffled.
    transforms: Transforms from dataset rows to examples, as in `transforms=` of
      a dataset; the last is a `ChatTask` or a `TextTask`, whose `max_length` is
      the length of the rows.
    out_positions: Key to write the positions to.
  """

  data_source: Any
  transforms: Any
  out_positions: str = 'positions'

  def __post_init__(self):
    transforms = list(self.transforms)
    if not transforms or not isinstance(transforms[-1], _TASKS):
      raise ValueError(
          'PackedSource(transforms=...) should end with a g4.data.ChatTask or a'
          f' g4.data.TextTask. Got: {[type(t).__name__ for t in transforms]}'
      )
    if getattr(self._task, 'sampling', False):
      raise ValueError(
          'PackedSource: ChatTask(sampling=True) gives text, which is not packed.'
      )
    if getattr(self._task, 'in_images', None) is not None:
      raise ValueError(
          'PackedSource: conversations with images are not packed. Drop'
          ' ChatTask(in_images=...), or train on them unpacked.'
      )
    for transform in transforms[:-1]:
      if not isinstance(transform, grain.MapTransform | grain.FilterTransform):
        raise ValueError(
            'PackedSource(transforms=...) takes grain.MapTransform and'
            f' grain.FilterTransform. Got: {type(transform).__name__}. Put'
            ' others into the dataset around it.'
        )

  def __len__(self) -> int:
    return len(self.bins)

  def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
    task = self._task
    conversations = []
    for i in self.bins[index]:
      ids, weights = self._tokens(i)
      # The last token of each is a target only.
      conversations.append(
          (ids[:-1], ids[1:], weights[1:], np.arange(len(ids) - 1))
      )
    tokens, targets, weights, positions = (
        np.concatenate(arrays) for arrays in zip(*conversations, strict=True)
    )
    fields = task.pad_fields(tokens, targets, weights)
    positions = _tokens.pad(positions.astype(np.int32), task.row_length)
    return fields | {self.out_positions: positions}

  def field_specs(self, max_length: int | None = None) -> dict[str, Any]:
    """Returns the shapes of a row's fields; see `ChatTask.field_specs`."""
    length = max_length or self._task.row_length
    positions = _tokens.spec(length, dtype=np.int32)
    return self._task.field_specs(length) | {self.out_positions: positions}

  @functools.cached_property
  def bins(self) -> list[list[int]]:
    """The conversations of each row, by their index in the source.

    A split text of `TextTask` counts as several.

    Raises:
      ValueError: There are no conversations, or too many malformed ones.
    """
    sizes = self._plan[0]
    bins = _first_fit.first_fit_decreasing(
        sizes, capacity=self._task.row_length
    )
    if not bins:
      raise ValueError(
          f'PackedSource: of {len(sizes)} rows none is left to train on.'
      )
    num_tokens = int(sizes[sizes > 0].sum())
    logging.info(
        'PackedSource: %d conversations of %d tokens in %d rows of %d, which are'
        ' %.1f%% full.',
        (sizes >= 0).sum(),
        num_tokens,
        len(bins),
        self._task.row_length,
        100 * num_tokens / (len(bins) * self._task.row_length),
    )
    return bins

  @functools.cached_property
  def _plan(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the items to pack: rows of the source, or pieces of long texts.

    Returns:
      The tokens of each item, -1 if it is left out, i64 `[M]`; and its row and
      which piece of it, i64 `[M, 2]`.
    """
    sizes, items = [], []
    for row in range(len(self._source)):
      for piece, size in enumerate(self._sizes(row)):
        sizes.append(size)
        items.append((row, piece))
    return np.array(sizes, np.int64), np.array(items, np.int64).reshape(-1, 2)

  def _sizes(self, i: int) -> list[int]:
    """Returns how many tokens the pieces of a row take."""
    row, task = self._before(i), self._task
    if row is None:
      return [-1]
    if isinstance(task, _text_task.TextTask):
      pieces = task.pieces_or_none(row)
    else:
      tokens = task.tokens_or_none(row)
      pieces = None if tokens is None else [tokens]
    if pieces is None:
      return [-1]
    self._recent.keep(i, pieces)
    return [len(ids) - 1 for ids, _ in pieces]

  def _tokens(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens and weights of an item."""
    row, piece = map(int, self._plan[1][i])
    pieces = self._recent.get(row)
    if pieces is None:
      task, element = self._task, self._before(row)
      if isinstance(task, _text_task.TextTask):
        pieces = task.pieces(element)
      else:
        pieces = [task.tokens(element)]
      self._recent.keep(row, pieces)
    return pieces[piece]

  @functools.cached_property
  def _recent(self) -> _recent_texts.RecentTexts:
    return _recent_texts.RecentTexts()

  def _before(self, i: int) -> Any:
    """Returns a row as passed to `ChatTask`; None if a filter drops it."""
    row = self._source[i]
    for transform in self._transforms_before:
      if isinstance(transform, grain.FilterTransform):
        if not transform.filter(row):
          return None
      else:
        row = transform.map(row)
        if row is None:
          return None
    return row

  @functools.cached_property
  def _transforms_before(self) -> list[Any]:
    return _passed_transforms.before_task(self.transforms)[:-1]

  @property
  def _task(self) -> _chat_task.ChatTask | _text_task.TextTask:
    return list(self.transforms)[-1]

  @functools.cached_property
  def _source(self) -> Any:
    if isinstance(self.data_source, kd.data.py.PyGrainPipeline):
      if self.data_source.transforms:
        raise ValueError(
            'PackedSource(data_source=...) has transforms= of its own, which'
            " would not run: move them into PackedSource's."
        )
      return self.data_source.data_source  # pyrefly: ignore[missing-attribute]
    return self.data_source
