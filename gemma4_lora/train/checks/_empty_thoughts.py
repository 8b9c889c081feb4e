"""Checks that prompts have the empty thought where the model's server has it."""

from typing import Any

from absl import logging
from kauldron import kd

from gemma4_lora import data
from gemma4_lora.data import _pipeline

# What servers read: see `data/README.md`.
_SERVED = 'transformers'


def check(trainer: kd.train.Trainer) -> None:
  """Warns if a task's prompts are those of models of another size.

  Google's chat template begins each answer of the larger models with an empty
  thought where thinking is off, and no answer of the E models.

  Args:
    trainer: The trainer.
  """
  config = getattr(trainer.model, 'config', None)
  if not hasattr(config, 'per_layer_input_dim'):
    return
  is_large = not config.per_layer_input_dim
  tasks = (data.ChatTask, data.PreferenceTask, data.UnpairedTask)
  for task in _pipeline.walk(trainer.train_ds):
    if isinstance(task, tasks) and (said := _fault(task, is_large=is_large)):
      logging.warning(
          'g4.train.TrainStep: %s(thinking=%r, template=%r) in train_ds: %s',
          type(task).__name__,
          task.thinking,
          task.template,
          said,
      )


def _fault(task: Any, *, is_large: bool) -> str | None:
  is_empty = task.thinking == 'empty'
  if is_empty and not is_large:
    return (
        'E2B and E4B have no empty thought in their prompts, so the model would'
        " learn from a prompt that its server never gives. Write thinking='strip'."
    )
  is_served = task.template.startswith(_SERVED)
  if is_large and is_served and not is_empty and not task.enable_thinking:
    return (
        'with thinking off, prompts of the larger models end with an empty'
        " thought, and what is trained has none. Write thinking='empty', or"
        ' enable_thinking=True if rows have thoughts.'
    )
  return None
