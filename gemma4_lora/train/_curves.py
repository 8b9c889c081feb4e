"""What a run has written to TensorBoard, as numbers to draw."""

from collections.abc import Iterator
from typing import Any

from etils import epath
import numpy as np

from gemma4_lora import host


def curves(
    workdir: epath.PathLike,
) -> dict[str, dict[str, dict[int, float]]]:
  """Returns the curves of a run, those from before it was interrupted too.

  ```python
  for name, loss in g4.train.curves(workdir).items():  # 'train', 'eval', ...
    plt.plot(*zip(*loss['losses/xentropy'].items()), label=name)
  ```

  Args:
    workdir: That of the Trainer, on a disk or in a bucket.

  Returns:
    `{'train': {'losses/xentropy': {0: 3.9, 100: 0.2}}, 'eval': ...}`: values by
    step, of each collection that TensorBoard shows. If a step was trained twice,
    its last value. Empty before the first step.
  """
  # It takes seconds to import, and Kauldron's writer imports it too.
  import tensorflow as tf

  folder = host.path(workdir, who='g4.train.curves')
  found: dict[str, dict[str, dict[int, float]]] = {}
  for path in sorted(folder.glob('*/events.out.tfevents.*'), key=_made):
    collection = found.setdefault(path.parent.name, {})
    for event in _events(path):
      for value in event.summary.value:
        content = np.asarray(tf.make_ndarray(value.tensor))
        if content.ndim == 0 and content.dtype.kind == 'f':
          points = collection.setdefault(value.tag, {})
          points[event.step] = float(content)
  return {
      name: {tag: dict(sorted(x.items())) for tag, x in tags.items()}
      for name, tags in found.items()
      if tags
  }


def _made(path: epath.Path) -> tuple[int, int]:
  """Returns when a file was made: the second, and a count of its process.

  Args:
    path: `events.out.tfevents.SECONDS.HOST.PROCESS.COUNT.v2`.
  """
  numbers = [int(x) for x in path.name.split('.') if x.isdigit()] or [0]
  return numbers[0], numbers[-1]


def _events(path: epath.Path) -> Iterator[Any]:
  """Gives the events in a file, up to where a process died as it wrote."""
  import tensorflow as tf

  records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
  while True:
    try:
      yield tf.compat.v1.Event.FromString(next(records))
    except (StopIteration, tf.errors.DataLossError):
      return
