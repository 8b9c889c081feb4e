"""English-French sentences in the fields of any dataset of conversations."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any
from typing import SupportsIndex

from grain import python as grain
import numpy as np

from gemma4_lora.data.layouts import _layouts
from gemma4_lora.testing import _pairs

_TEXT_KEYS = ('prompt', 'response')
_IMAGE_SIZES = ((24, 24), (12, 36), (24, 12))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatRows(grain.RandomAccessDataSource):
  """`EnFrPairs`, laid out as a task reads them.

  ```python
  g4.testing.ChatRows(layout='messages')[0]
  # {'messages': [{'role': 'user', 'content': 'The cat sleeps.'},
  #               {'role': 'assistant', 'content': 'Le chat dort.'}]}
  ```

  Attributes:
    split: "train" or "test".
    layout: See `g4.data.ChatTask`, also for the other fields.
    in_prompt: Key of the English sentence, where it stands alone.
    in_response: Key of the French one, or of the messages that end with it where
      one of two is preferred.
    in_rejected: Key of another answer, for `g4.data.PreferenceTask`: the English
      sentence again.
    in_label: Key of whether the answer is good, for `g4.data.UnpairedTask`: every
      other one.
    in_messages: Key of the messages. Default: the layout's.
    in_images: Key of images: every other row has one.
    others: Further keys of each row, which no task reads.
  """

  split: str = 'train'
  layout: str = 'prompt_response'
  in_prompt: str | None = 'prompt'
  in_response: str = 'response'
  in_rejected: str | None = None
  in_label: str | None = None
  in_messages: str | None = None
  in_images: str | None = None
  others: Sequence[str] = ()

  def __len__(self) -> int:
    return len(self._pairs)

  def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
    pair = self._pairs[index]
    prompt, answer = pair['en'], pair['fr']
    row: dict[str, Any] = dict.fromkeys(self.others, '')
    images = self._images(int(index))
    if self.in_images is not None:
      row[self.in_images] = images
    layout = _layouts.by_name(self.layout)
    # A layout may have other names for the defaults.
    names = dict(zip(_TEXT_KEYS, layout.text_keys, strict=True))
    is_judged = self.in_rejected is not None or self.in_label is not None
    is_apart = is_judged or not layout.is_chat
    if is_apart and self.in_prompt is not None:
      key = names.get(self.in_prompt, self.in_prompt)
      row[key] = f'<|image|>{prompt}' if images else prompt
    say = functools.partial(
        layout.write,
        None if is_apart and self.in_prompt is not None else prompt,
        num_images=None if self.in_images is None else len(images),
    )
    if is_judged:
      row[self.in_response] = say(answer)
      if self.in_rejected is not None:
        row[self.in_rejected] = say(prompt)
      if self.in_label is not None:
        row[self.in_label] = int(index) % 2 == 0
    elif layout.in_messages is not None:
      row[self.in_messages or layout.in_messages] = say(answer)
    else:
      row[names.get(self.in_response, self.in_response)] = say(answer)
    return row

  def _images(self, index: int) -> list[np.ndarray]:
    if self.in_images is None or index % 2:
      return []
    rng = np.random.default_rng(index)
    size = _IMAGE_SIZES[index // 2 % len(_IMAGE_SIZES)]
    return [rng.integers(0, 256, (*size, 3), np.uint8)]

  @functools.cached_property
  def _pairs(self) -> _pairs.EnFrPairs:
    return _pairs.EnFrPairs(split=self.split)
