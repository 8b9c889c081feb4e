"""What `g4.nn.LoRA` writes to the log when its parameters are made."""

from typing import Any

from absl import logging


def log(lora: Any) -> None:
  """Logs how much is adapted, and with `verbose=True` each projection.

  Args:
    lora: A `g4.nn.LoRA`.
  """
  adapted = lora.adapted
  ranks = sorted({linear.rank for linear in adapted})
  logging.info(
      'g4.nn.LoRA: rank %s, %d projections, %s trainable parameters.',
      ', '.join(map(str, ranks)),
      sum(len(linear.row.hf_names) for linear in adapted),
      f'{sum(part.num_params for part in (*adapted, *lora.saved)):,}',
  )
  if lora.verbose:
    for linear in adapted:
      shapes = linear.shapes
      a, b = shapes['a'], shapes['b']
      logging.info('  %s: A %s, B %s', linear.row.lora_path, a, b)
    for part in lora.saved:
      logging.info('  %s: in full, %s', part.path, part.shape)
