"""BLEU of sampled texts."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import flax
from kauldron import kd
from kauldron import kontext
import numpy as np

from gemma4_lora.data.conversations import _conversation


@flax.struct.dataclass
class _BleuState(kd.metrics.State['Bleu']):
  """All texts so far: BLEU is computed over a corpus, not as a mean."""

  predictions: tuple[str, ...] = ()
  references: tuple[str, ...] = ()

  @classmethod
  def empty(cls) -> '_BleuState':
    return cls()

  def merge(self, other: '_BleuState') -> '_BleuState':
    return dataclasses.replace(
        self,
        predictions=self.predictions + other.predictions,
        references=self.references + other.references,
    )

  def compute(self) -> float:
    """Returns BLEU, from 0 to 100."""
    metric = _sacrebleu(self.parent.tokenize, self.parent.lowercase)
    return metric.corpus_score(
        list(self.predictions), [list(self.references)]
    ).score


@dataclasses.dataclass(kw_only=True, frozen=True, eq=True)
class Bleu(kd.metrics.Metric):
  """BLEU of sampled texts, from 0 to 100, as `sacrebleu` computes it.

  A metric of `g4.evals.SamplerEvaluator` and `gm.evals.SamplerEvaluator`, over
  datasets with `g4.data.ChatTask(sampling=True)`. Needs `gemma4_lora[eval]`.

  Texts are compared up to the end of the turn, without thoughts and without
  space at the ends.

  Attributes:
    predictions: Key of the model's texts: one, or several.
    references: Key of the expected texts: as many.
    tokenize: A tokenizer of `sacrebleu`: `'13a'` (its default), `'intl'`,
      `'zh'`, `'ja-mecab'`, `'char'`, `'none'`, ...
    lowercase: Whether case does not count.

  References:
    A call for clarity in reporting BLEU scores:
    https://aclanthology.org/W18-6319
  """

  predictions: kontext.Key = 'preds.text'
  references: kontext.Key = 'batch.target'
  tokenize: str = '13a'
  lowercase: bool = False

  State = _BleuState  # pyrefly: ignore[bad-override]

  def get_state(  # pyrefly: ignore[bad-override]: by names, as Kauldron's.
      self, predictions: Any, references: Any
  ) -> _BleuState:
    """Returns the state of some examples.

    Args:
      predictions: The model's text, or several.
      references: The expected texts, as many.

    Raises:
      ImportError: `sacrebleu` is not installed.
      ValueError: Their numbers differ, or they are not texts.
    """
    _sacrebleu(self.tokenize, self.lowercase)  # Fail before much is sampled.
    said = _texts(predictions, key=self.predictions)
    wanted = _texts(references, key=self.references)
    if len(said) != len(wanted):
      raise ValueError(
          f'g4.evals.Bleu: {self.predictions} has {len(said)} texts, and'
          f' {self.references} {len(wanted)}.'
      )
    return self.State(predictions=said, references=wanted)


def _texts(value: Any, *, key: str) -> tuple[str, ...]:
  values: Sequence[Any] = np.asarray(value, dtype=object).ravel().tolist()
  for text in values:
    if not isinstance(text, str):
      raise ValueError(
          f'g4.evals.Bleu: {key} is not a text but a {type(text).__name__}.'
          ' Bleu is a metric of g4.evals.SamplerEvaluator, over datasets with'
          ' g4.data.ChatTask(sampling=True).'
      )
  return tuple(map(_conversation.said, values))


@functools.cache
def _sacrebleu(tokenize: str, lowercase: bool) -> Any:
  """Returns sacrebleu's metric.

  Raises:
    ImportError: It is not installed.
    ValueError: The tokenizer is unknown.
  """
  try:
    from sacrebleu import metrics  # pylint: disable=g-import-not-at-top
  except ImportError as e:
    raise ImportError(
        'g4.evals.Bleu needs sacrebleu, of the extra `eval`: pip install'
        ' "gemma4_lora[eval]", or pip install sacrebleu.'
    ) from e
  try:
    return metrics.BLEU(tokenize=tokenize, lowercase=lowercase)
  except (AssertionError, KeyError) as e:
    raise ValueError(
        f'g4.evals.Bleu(tokenize={tokenize!r}) is no tokenizer of sacrebleu:'
        f' {sorted(metrics.BLEU.TOKENIZERS)}.'
    ) from e
