"""What TensorBoard shows of a run."""

import tensorflow as tf


def scalars(folder):
  """Returns `{tag: {step: value}}` of a collection; texts as lists."""
  found = {}
  for path in sorted(folder.glob('events.out.tfevents.*')):
    for event in tf.compat.v1.train.summary_iterator(str(path)):
      for value in event.summary.value:
        content = tf.make_ndarray(value.tensor).tolist()
        if isinstance(content, list):
          content = [x.decode() for x in content]
        found.setdefault(value.tag, {})[event.step] = content
  return found
