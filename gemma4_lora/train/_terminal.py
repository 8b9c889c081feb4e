"""Output of a run in a terminal."""

from collections.abc import Mapping
import dataclasses
import logging as std_logging
import pathlib
from typing import Any

from absl import logging
from kauldron import kd
import numpy as np
import tqdm

from gemma4_lora.train.progress import _interval

_PACKAGE = str(pathlib.Path(__file__).parent.parent)

PRINTED_SCALARS = ("losses/", "metrics/")
_TOTAL = "losses/total"
_STEPS_PER_SEC = "perf_stats/steps_per_sec"
_PER_SEC = {
    "tokens": "perf_stats/tokens_per_sec",
    "trained": "perf_stats/trained_tokens_per_sec",
}
_RATES = ("learning_rate", "lr")
_SUMMARIES = "summaries/"


@dataclasses.dataclass(frozen=True, eq=True, kw_only=True)
class TerminalWriter(kd.train.KDMetricWriter):
  """Kauldron's metric writer, which also prints losses, metrics and texts.

  Kauldron writes them to TensorBoard, and to a log among hundreds of other
  lines. With `g4.train.TrainStep`, a line of the training also has the learning
  rate, the norm of the gradients, the peak of memory, tokens per second, trained
  tokens per second, and the time that is left. TensorBoard has them, too. Two
  things are left out: the total of a single loss, which is the same chart again,
  and the table `context_spec`, for which Kauldron compiles the
  model's `init` a second time.

  ```python
  trainer = kd.train.Trainer(
      setup=g4.train.QuietSetup(),
      writer=g4.train.TerminalWriter(),
      ...
  )
  ```
  """

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    scalars = without_total(scalars)
    for name, per_step in _interval.PER_STEP.items():
      if per_step in scalars and _STEPS_PER_SEC in scalars:
        per_sec = float(scalars[per_step]) * scalars[_STEPS_PER_SEC]
        scalars[_PER_SEC[name]] = per_sec
    super().write_scalars(step, scalars)
    values = [
        f"{name.partition('/')[2]} {float(value):7.4f}"
        for name, value in scalars.items()
        if name.startswith(PRINTED_SCALARS) and name != _interval.GRAD_NORM
    ]
    if values:
      self._print(step, "  ".join([*values, *_rest(scalars)]))

  def write_texts(self, step: int, texts: Mapping[str, Any]) -> None:
    super().write_texts(step, texts)
    if shown := shown_texts(texts):
      self._print(step, shown)

  def write_context_structure(
      self, step: int, trainer: kd.train.Trainer
  ) -> None:
    pass

  def _print(self, step: int, text: str) -> None:
    # Above the progress bar, not in it.
    tqdm.tqdm.write(f"step {step:>5}  {self.collection:<8}  {text}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuietSetup(kd.train.Setup):
  """Kauldron's setup, which also silences the log of other packages.

  Below the level of warnings, it shows only messages of `gemma4_lora`.
  """

  def run(self, trainer: kd.train.Trainer) -> None:
    super().run(trainer)
    logging.get_absl_handler().addFilter(_is_ours_or_warning)


def without_total(scalars: Mapping[str, Any]) -> dict[str, Any]:
  """Returns scalars without the total of a single loss."""
  is_single = sum(name.startswith("losses/") for name in scalars) == 2
  return {
      name: value
      for name, value in scalars.items()
      if name != _TOTAL or not is_single
  }


def shown_texts(texts: Mapping[str, Any]) -> str:
  """Returns what a sampler writes, example by example; empty for other texts."""
  # Single strings are descriptions of the run: config, parameters, ...
  columns = {
      name.removeprefix(_SUMMARIES): list(np.ravel(value))
      # `SamplerEvaluator` writes prompt, gt, answer.
      for name, value in sorted(texts.items(), reverse=True)
      if not isinstance(value, str)
  }
  if not columns:
    return ""
  width = max(map(len, columns))
  blocks = [""]
  for row in zip(*columns.values(), strict=True):
    lines = [
        f"    {name:<{width}}  {_one_line(text)}"
        for name, text in zip(columns, row, strict=True)
    ]
    blocks.append("\n".join(lines))
  return "\n".join(blocks)


def _rest(scalars: Mapping[str, Any]) -> list[str]:
  """Returns the end of a line: in the same units and widths in all lines.

  Args:
    scalars: By name. What the first line does not know comes last.
  """
  shown = []
  if (rate := _learning_rate(scalars)) is not None:
    shown.append(f"lr {rate:.2e}")
  for name, text in (
      (_interval.GRAD_NORM, "grad {:7.3f}"),
      (_interval.PEAK_GIB, "peak {:6.2f} GiB"),
      (_PER_SEC["tokens"], "{:9,.0f} tokens/s"),
      (_PER_SEC["trained"], "{:9,.0f} trained/s"),
  ):
    if name in scalars:
      shown.append(text.format(float(scalars[name])))
  if _interval.HOURS_LEFT in scalars:
    minutes, seconds = divmod(round(scalars[_interval.HOURS_LEFT] * 3600), 60)
    hours, minutes = divmod(minutes, 60)
    shown.append(f"{hours}:{minutes:02}:{seconds:02} left")
  return shown


def _learning_rate(scalars: Mapping[str, Any]) -> float | None:
  """Returns what `schedules=` of the trainer, or the train step, says of it."""
  found = {
      name.partition("/")[2]: float(value)
      for name, value in scalars.items()
      if name.startswith("schedules/")
  }
  if len(found) == 1:
    return next(iter(found.values()))
  return next((found[name] for name in _RATES if name in found), None)


def _is_ours_or_warning(record: std_logging.LogRecord) -> bool:
  is_ours = record.pathname.startswith(_PACKAGE)
  return is_ours or record.levelno >= std_logging.WARNING


def _one_line(text: Any) -> str:
  return str(text).replace("\n", "⏎")
