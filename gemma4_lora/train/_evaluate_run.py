"""`gemma4_lora eval`: the evaluators of a run, on one of its checkpoints."""

from collections.abc import Sequence
import dataclasses
import difflib
import json
from typing import Any

from kauldron import kd
from kauldron import konfig
from kauldron.utils import constants
import numpy as np

from gemma4_lora import host
from gemma4_lora.host import _escapes
from gemma4_lora.jobs import _train
from gemma4_lora.train import _terminal
from gemma4_lora.train import _train_step

_WHO = 'gemma4_lora eval'
_COLUMNS = ('evaluator', 'metric', 'value')


def evaluate(cfg: Any, *, names: Sequence[str] = (), step: int = -1) -> str:
  """Runs evaluators on a checkpoint; writes nothing to the run.

  Args:
    cfg: A `konfig.ConfigDict` of a trainer with a workdir.
    names: Which of `evals=`; default: all.
    step: Which checkpoint of the run; -1 for the last.

  Returns:
    A table of their metrics, and texts that they sampled.

  Raises:
    FileNotFoundError: There is no checkpoint.
    ValueError: There is no such evaluator.
  """
  names = _check_names(names, cfg.get('evals'))
  workdir = host.path(cfg.workdir, who='--workdir')
  if not (workdir / 'checkpoints').exists():
    raise FileNotFoundError(f'{_WHO}: there is no checkpoint in {workdir}.')
  _train.take_our_checkpointer(cfg)
  return of_trainer(konfig.resolve(cfg), names=names, step=step)


def of_trainer(
    trainer: kd.train.Trainer, *, names: Sequence[str], step: int = -1
) -> str:
  """Is `evaluate`, of a trainer and evaluators that it has."""
  workdir = host.path(trainer.workdir, who='--workdir')
  checkpointer = trainer.checkpointer
  if not isinstance(checkpointer, kd.ckpts.Checkpointer):
    raise ValueError(f'{_WHO}: the config has no checkpointer= to read with.')
  last = checkpointer.latest_step
  if last is None:
    raise FileNotFoundError(f'{_WHO}: there is no checkpoint in {workdir}.')
  step = last if step == -1 else step
  steps = sorted(checkpointer.all_steps)
  if step not in steps:
    raise FileNotFoundError(
        f'{_WHO}: --step={step} is not in {workdir}. Available steps: {steps}.'
    )
  _print_no_start(trainer.trainstep)
  state = trainer.init_state(
      skip_transforms=True, element_spec=_element_spec(trainer, workdir)
  )
  state = checkpointer.restore(state, step=step)
  found = _Collector(workdir=workdir)
  for name in names:
    evaluator: Any = trainer.evals[name]
    evaluator = dataclasses.replace(evaluator, writer=found)
    evaluator.evaluate(state, step)
  return '\n'.join([f'step {step} of {workdir}', *found.lines()])


def _check_names(names: Sequence[str], evals: Any) -> list[str]:
  """Returns the evaluators to run.

  Raises:
    ValueError: There are none, or not those.
  """
  known = list(evals or {})
  if not known:
    raise ValueError(f'{_WHO}: the config has no evaluators: evals= is empty.')
  for name in names:
    if name not in known:
      close = difflib.get_close_matches(name, known, n=1)
      hint = f' Did you mean {close[0]!r}?' if close else ''
      raise ValueError(
          f'{_WHO}: --eval={_escapes.escaped(name)}: the config has no such'
          f' evaluator.{hint} It has: {", ".join(known)}.'
      )
  return list(dict.fromkeys(names)) or known


def _print_no_start(trainstep: Any) -> None:
  """Lets a train step make a state without saying what trains."""
  if isinstance(trainstep, _train_step.TrainStep):
    object.__setattr__(trainstep, 'print_start', False)


def _element_spec(trainer: kd.train.Trainer, workdir: Any) -> Any:
  """Returns what the run was trained on, which need not be at hand."""
  path = workdir / constants.ELEMENT_SPEC_FILENAME
  if not path.exists():
    return None
  return konfig.resolve(json.loads(path.read_text()), freeze=False)


@dataclasses.dataclass(frozen=True, eq=True, kw_only=True)
class _Collector(kd.train.metric_writer.NoopWriter):
  """Keeps what evaluators write.

  Attributes:
    scalars: By collection.
    texts: By collection.
  """

  scalars: dict[str, dict[str, float]] = dataclasses.field(
      default_factory=dict, compare=False
  )
  texts: dict[str, str] = dataclasses.field(default_factory=dict, compare=False)

  write_step_metrics = kd.train.metric_writer.WriterBase.write_step_metrics

  def write_scalars(self, step: int, scalars: Any) -> None:
    found = self.scalars.setdefault(self.collection, {})
    for name, value in _terminal.without_total(scalars).items():
      if name.startswith(_terminal.PRINTED_SCALARS):
        found[name.partition('/')[2]] = float(np.asarray(value))

  def write_texts(self, step: int, texts: Any) -> None:
    if shown := _terminal.shown_texts(texts):
      self.texts[self.collection] = shown

  def lines(self) -> list[str]:
    """Returns the table, and the texts below it."""
    rows = [
        (collection, name, f'{value:.4f}')
        for collection, scalars in self.scalars.items()
        for name, value in scalars.items()
    ]
    lines = []
    if rows:
      widths = [max(map(len, x)) for x in zip(_COLUMNS, *rows, strict=True)]
      lines = [
          f'{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}'
          for a, b, c in (_COLUMNS, *rows)
      ]
    for collection, text in self.texts.items():
      lines.append(f'{collection}:{_escapes.escaped(text)}')
    return lines
