"""Steps whose loss, or whose parameters, turned NaN or infinite."""

from collections.abc import Mapping
import contextlib
from typing import Any

import flax
import jax
import jax.numpy as jnp
from kauldron import kd

_WHO = 'g4.train.TrainStep'


@flax.struct.dataclass
class Numbers:
  """What a step says of itself, beside its losses.

  Attributes:
    is_bad: bool `[2]`: the loss, and what is trained, is NaN or infinite.
    labels: i32 scalars: labels that are no token, by loss.
  """

  is_bad: jax.Array
  labels: Mapping[str, jax.Array]


@flax.struct.dataclass
class Said:
  """States of losses as the compiled step returns them, and its numbers."""

  loss_states: Any
  numbers: Numbers


@flax.struct.dataclass
class Context(kd.train.Context):
  """Kauldron's context, whose numbers leave the compiled step with the losses.

  Attributes:
    numbers: What the step says of itself.
  """

  numbers: Any = None

  def get_aux_state(self, **kwargs: Any) -> kd.train.AuxiliariesState:
    aux = super().get_aux_state(**kwargs)
    said = Said(loss_states=aux.loss_states, numbers=self.numbers)
    return aux.replace(loss_states=said)

  @classmethod
  def of(cls, context: kd.train.Context, numbers: Numbers) -> 'Context':
    """Returns a context of Kauldron's, with a step's numbers."""
    return cls(**vars(context), numbers=numbers)


def is_bad(loss: Any, leaves: list[Any]) -> jax.Array:
  """Returns whether a loss, and whether an array, is NaN or infinite.

  Args:
    loss: A scalar.
    leaves: Arrays.

  Returns:
    bool `[2]`
  """
  are_finite = [jnp.isfinite(x).all() for x in (loss, *leaves)]
  rest = jnp.stack(are_finite[1:]).all() if leaves else jnp.asarray(True)
  return ~jnp.stack([are_finite[0], rest])


class Counter:
  """Counts bad steps in a row."""

  def __init__(self):
    self._num = 0

  def restart(self) -> None:
    self._num = 0

  def check(
      self, is_bad: Any, step: int, *, most: int, checkpointer: Any
  ) -> None:
    """Raises if a run cannot go on, or goes on for nothing.

    Args:
      is_bad: Of the step, from `is_bad`.
      step: The step.
      most: How many steps in a row may have a bad loss.
      checkpointer: The run's; says from where to go on.

    Raises:
      FloatingPointError: What is trained is NaN; or too many losses in a row.
    """
    of_loss, of_trained = map(bool, is_bad)
    self._num = self._num + 1 if of_loss else 0
    if of_trained:
      what = (
          f'step {step} left NaN or infinite values in what it trains: no later'
          ' step can mend that'
      )
    elif self._num >= most:
      what = (
          f'the loss was NaN or infinite in {self._num} steps in a row, up to'
          f' step {step}'
      )
    else:
      return
    raise FloatingPointError(
        f'{_WHO}: {what}. {_last_good(checkpointer)} Try a smaller learning'
        ' rate, a warm-up, or clipping:'
        ' kd.optim.partial_updates(optax.chain(optax.clip_by_global_norm(1.0),'
        ' …), mask=kd.optim.select("lora")); optax.apply_if_finite(…) within'
        ' partial_updates leaves single bad steps out. To go on nevertheless:'
        f' {_WHO}(max_bad_steps=None).'
    )


def _last_good(checkpointer: Any) -> str:
  """Returns what is left to go on from."""
  cls = kd.ckpts.Checkpointer
  if not isinstance(checkpointer, cls):
    return 'The run has no checkpoint.'
  # Kauldron's own, as ours end the run.
  with contextlib.suppress(Exception):
    cls.wait_until_finished(checkpointer)
  # `latest_step` of ours would end it as well.
  step = max(checkpointer.all_steps, default=None)
  if step is None:
    return f'Nothing of it was saved in {checkpointer.workdir}.'
  return (
      f'The last checkpoint is from before: step {step} of'
      f' {checkpointer.workdir}. The same command goes on from it.'
  )
