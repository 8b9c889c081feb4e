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

_PACKAGE = str(pathlib.Path(__file__).parent.parent)

_PRINTED_SCALARS = ("losses/", "metrics/")
_SUMMARIES = "summaries/"


@dataclasses.dataclass(frozen=True, eq=True, kw_only=True)
class TerminalWriter(kd.train.KDMetricWriter):
  """Kauldron's metric writer, which also prints losses, metrics and texts.

  Kauldron writes them to TensorBoard, and to a log among hundreds of other
  lines. The table `context_spec` is left out, for which Kauldron compiles the
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
    super().write_scalars(step, scalars)
    values = [
        f"{name.partition('/')[2]} {float(value):.4f}"
        for name, value in scalars.items()
        if name.startswith(_PRINTED_SCALARS)
    ]
    if values:
      self._print(step, "  ".join(values))

  def write_texts(self, step: int, texts: Mapping[str, Any]) -> None:
    super().write_texts(step, texts)
    # Single strings are descriptions of the run: config, parameters, ...
    columns = {
        name.removeprefix(_SUMMARIES): list(np.ravel(value))
        # `SamplerEvaluator` writes prompt, gt, answer.
        for name, value in sorted(texts.items(), reverse=True)
        if not isinstance(value, str)
    }
    if not columns:
      return
    width = max(map(len, columns))
    blocks = [""]
    for row in zip(*columns.values(), strict=True):
      lines = [
          f"    {name:<{width}}  {_one_line(text)}"
          for name, text in zip(columns, row, strict=True)
      ]
      blocks.append("\n".join(lines))
    self._print(step, "\n".join(blocks))

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


def _is_ours_or_warning(record: std_logging.LogRecord) -> bool:
  is_ours = record.pathname.startswith(_PACKAGE)
  return is_ours or record.levelno >= std_logging.WARNING


def _one_line(text: Any) -> str:
  return str(text).replace("\n", "⏎")
