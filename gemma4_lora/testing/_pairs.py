"""English-French sentence pairs for tests and examples."""

import dataclasses
import functools
import json
from typing import SupportsIndex

from etils import epath
from grain import python as grain

PAIRS_PATH = epath.resource_path("gemma4_lora") / "testing" / "en_fr.jsonl"

_SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class EnFrPairs(grain.RandomAccessDataSource):
  """400 everyday sentences in English and French, as a grain data source.

  Written for this package: short sentences of a few recurring shapes, so that
  a tiny model can learn to translate new ones. The test split is the last
  tenth; each of its words, but none of its sentences, is in the train split.

  ```python
  kd.data.py.DataSource(
      data_source=g4.testing.EnFrPairs(split="train"), shuffle=True, ...
  )
  ```

  Each example is `{"en": "The cat sleeps.", "fr": "Le chat dort."}`.

  Attributes:
    split: "train" (360 pairs) or "test" (40 pairs).
  """

  split: str

  def __post_init__(self):
    if self.split not in _SPLITS:
      raise ValueError(f"split={self.split!r} must be one of {_SPLITS}.")

  def __len__(self) -> int:
    return len(self._pairs)

  def __getitem__(self, index: SupportsIndex) -> dict[str, str]:
    return dict(self._pairs[index])

  @functools.cached_property
  def _pairs(self) -> list[dict[str, str]]:
    lines = PAIRS_PATH.read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    num_train = len(pairs) * 9 // 10
    return pairs[:num_train] if self.split == "train" else pairs[num_train:]
