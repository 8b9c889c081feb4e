"""Steps whose loss is NaN or infinite, and runs that cannot go on from them."""

from collections.abc import Mapping
import contextlib
from typing import Any
from typing import NoReturn

import flax
import jax
from kauldron import kd

from gemma4_lora.ckpts import _good_state

_WHO = 'g4.train.TrainStep'


@flax.struct.dataclass
class Numbers:
  """Numbers of a step, beside its losses.

  Attributes:
    is_bad: bool: the loss is NaN or infinite.
    labels: i32 scalars: labels that are no token, by loss.
    counts: Tokens and the like: see `progress._step_counts.of_step`.
  """

  is_bad: jax.Array
  labels: Mapping[str, jax.Array]
  counts: Any = None


@flax.struct.dataclass
class Said:
  """States of losses as the compiled step returns them, and its numbers."""

  loss_states: Any
  numbers: Numbers


@flax.struct.dataclass
class Context(kd.train.Context):
  """Kauldron's context, whose numbers leave the compiled step with the losses.

  Attributes:
    numbers: Numbers of the step.
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


class Counter:
  """Counts bad steps in a row.

  A NaN in a trained leaf makes the loss of the next step NaN, so it is enough
  to look at the loss. The parameters, which are many arrays, are checked after
  a bad loss, and before they are saved.
  """

  def __init__(self):
    self._num = 0

  def restart(self) -> None:
    self._num = 0

  def check(
      self,
      is_bad: Any,
      step: int,
      *,
      state: kd.train.TrainState,
      most: int,
      checkpointer: Any,
  ) -> None:
    """Raises if a run cannot go on, or can no longer train.

    Args:
      is_bad: Whether the loss of the step is NaN or infinite.
      step: The step.
      state: The newest state.
      most: The most steps in a row that may have a bad loss.
      checkpointer: The run's checkpointer, for the step to go on from.

    Raises:
      FloatingPointError: What is trained is NaN; or too many losses in a row.
    """
    if not is_bad:
      self._num = 0
      return
    self._num += 1
    what = f'the loss of step {step} is NaN or infinite'
    check_state(state, checkpointer, what=f'{what}, and the state')
    if self._num >= most:
      _fail(
          f'{what}, the {self._num}. in a row; what is trained is finite.',
          checkpointer,
      )


def check_state(
    state: kd.train.TrainState, checkpointer: Any, *, what: str
) -> None:
  """Raises if no later step can recover from a state.

  Args:
    state: The state.
    checkpointer: The run's checkpointer, for the step to go on from.
    what: Name of the state, for the message.

  Raises:
    FloatingPointError: What is trained is NaN or infinite.
  """
  problem = _good_state.problem(state)
  if problem:
    _fail(f'{what} cannot recover: {problem}', checkpointer)


def _fail(what: str, checkpointer: Any) -> NoReturn:
  raise FloatingPointError(
      f'{_WHO}: {what} {_last_good(checkpointer)} Try a smaller learning rate, a'
      ' warm-up, or clipping:'
      ' kd.optim.partial_updates(optax.chain(optax.clip_by_global_norm(1.0),'
      ' …), mask=kd.optim.select("lora")); optax.apply_if_finite(…) within'
      ' partial_updates leaves single bad steps out. To go on anyway:'
      f' {_WHO}(max_bad_steps=None).'
  )


def _last_good(checkpointer: Any) -> str:
  """Returns the step to go on from, as a sentence."""
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
