"""The sources and tasks that a dataset is made of."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from grain import python as grain
from kauldron import kd
from kauldron.data.py import transform_utils

from gemma4_lora.data import _packed_source
from gemma4_lora.data import _row_task
from gemma4_lora.data.sources import _passed_transforms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """Rows of one source, and the task that makes examples of them.

  Attributes:
    name: Its place in the config, as `train_ds.datasets[0]`.
    kind: Class of the source, as `Files`.
    source: The source of the rows.
    before: Transforms of rows before the task.
    task: The task.
    is_packed: Whether examples are packed.
  """

  name: str
  kind: str
  source: Any
  before: Sequence[Any]
  task: _row_task.RowTask
  is_packed: bool

  def rows(self) -> Any:
    """Returns rows as the task gets them, by index; None if a filter drops it."""
    rows = grain.MapDataset.source(self.source).seed(0)
    return transform_utils.apply_transforms(
        rows, [_passed_transforms.passed(x) for x in self.before]
    )


def parts_of(
    ds: Any, *, name: str, after: Sequence[Any] = ()
) -> Iterator[Part]:
  """Yields the parts of a dataset: one, or those of a mix.

  Args:
    ds: A dataset of Kauldron.
    name: Its place in the config.
    after: Transforms that follow those of the dataset.

  Raises:
    ValueError: There is no task, or no rows that can be read by index.
  """
  if not isinstance(ds, kd.data.py.PyGrainPipeline):
    raise ValueError(
        f'show: {name} is a {type(ds).__name__}, whose rows cannot be read by'
        ' index. It should be a dataset of kd.data.py, or g4.data.Files.'
    )
  transforms: Any = ds.transforms
  if isinstance(transforms, Mapping):
    transforms = transforms.values()
  transforms = [*transforms, *after]
  inner: Any = getattr(ds, 'datasets', None)
  if inner is not None:
    for i, x in enumerate(inner):
      yield from parts_of(x, name=f'{name}.datasets[{i}]', after=transforms)
    return
  kind = type(ds).__name__
  source = _source(ds, name)
  is_packed = isinstance(source, _packed_source.PackedSource)
  if is_packed:
    kind = f'PackedSource of {type(source.data_source).__name__}'
    transforms = list(source.transforms)
    source = source._source  # pylint: disable=protected-access
  at = [i for i, x in enumerate(transforms) if isinstance(x, _row_task.RowTask)]
  if not at:
    raise ValueError(
        f'show: {name} has no task of g4.data in its transforms='
        f' {[type(x).__name__ for x in transforms]}. Give it a'
        ' g4.data.ChatTask, TextTask or PreferenceTask.'
    )
  yield Part(
      name=name,
      kind=kind,
      source=source,
      before=transforms[: at[0]],
      task=transforms[at[0]],
      is_packed=is_packed,
  )


def _source(ds: Any, name: str) -> Any:
  """Returns the source of a dataset: TFDS and others open it here.

  Raises:
    ValueError: It cannot be opened.
  """
  try:
    return ds.data_source
  except Exception as e:
    line = str(e).strip().partition('\n')[0]
    raise ValueError(
        f'show: {name}, a {type(ds).__name__}, cannot be opened:'
        f' {type(e).__name__}: {line}'
    ) from e
