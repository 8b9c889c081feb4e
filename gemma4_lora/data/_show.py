"""A picture of an example: its tokens, coloured by whether they are trained."""

import dataclasses
import html
import os
import re
import sys
from typing import Any

from etils import epy
from gemma import gm
from kauldron import kd
import numpy as np

from gemma4_lora.host import _escapes

_BYTE = re.compile(r'<0x([0-9A-F]{2})>')

# Two shades each, to tell neighbours apart: 256-colour codes of terminals, and
# colours of notebooks, with dark text in any theme.
_ANSI = {
    True: ('\033[30;48;5;114m', '\033[30;48;5;151m'),
    False: ('\033[38;5;245m', '\033[38;5;250m'),
}
_RESET = '\033[0m'
_HTML = {True: ('#7bd88f', '#b5ecc0'), False: ('#ececec', '#dcdcdc')}


@dataclasses.dataclass(frozen=True)
class _Token:
  """One token, or several that are the bytes of one character."""

  text: str
  ids: tuple[int, ...]
  weight: float


@dataclasses.dataclass(frozen=True, repr=False)
class Shown:
  """What `g4.data.show` returns: coloured text, in a terminal or a notebook.

  Attributes:
    rows: Tokens of each row.
    paddings: How many tokens of padding follow each row.
  """

  rows: tuple[tuple[_Token, ...], ...]
  paddings: tuple[int, ...]

  def __repr__(self) -> str:
    return '\n'.join(self._title(i) for i in range(len(self.rows)))

  def __str__(self) -> str:
    return self.as_text(colour=True)

  def as_text(self, *, colour: bool) -> str:
    """Returns the text: in ANSI colours, or with trained tokens in ⟦⟧."""
    texts = []
    for i, tokens in enumerate(self.rows):
      body = _ansi(tokens) if colour else _plain(tokens)
      texts.append(f'{self._title(i)}\n{body}')
    return '\n\n'.join(texts)

  def _repr_html_(self) -> str:
    """Returns the same for a notebook; hover over a token for its id."""
    rows = (
        f'<div style="margin:4px 0">{html.escape(self._title(i))}</div>'
        '<div style="font-family:monospace;white-space:pre-wrap;'
        f'line-height:1.6">{_html(tokens)}</div>'
        for i, tokens in enumerate(self.rows)
    )
    return '<div style="max-width:100ch">' + '<hr>'.join(rows) + '</div>'

  def _title(self, i: int) -> str:
    tokens = [t for t in self.rows[i] for _ in t.ids]
    trained = sum(t.weight > 0 for t in tokens)
    return (
        f'{len(tokens)} tokens, {trained} trained (green),'
        f' {self.paddings[i]} of padding'
    )


def show(
    example: Any,
    *,
    tokenizer: gm.text.Tokenizer | None = None,
    in_input: kd.kontext.Key = 'input',
    in_target: kd.kontext.Key = 'target',
    in_mask: kd.kontext.Key = 'loss_mask',
    in_positions: kd.kontext.Key = 'positions',
) -> Shown:
  """Shows which tokens of an example are trained, and which are context.

  ```python
  g4.data.show(ds[0])
  ```

  In a terminal it prints in colours; without colours, or if `NO_COLOR` is set,
  with trained tokens in ⟦⟧. A notebook's cell shows the result.

  Args:
    example: An example of `ChatTask`, `PackedSource` or `PreferenceTask`, or a
      batch.
    tokenizer: The task's tokenizer. Default: Gemma 4's.
    in_input: Key of the model's input.
    in_target: Key of the labels.
    in_mask: Key of the loss mask.
    in_positions: Key of the positions, if there is one.

  Raises:
    ValueError: There is no such field.
  """
  result = shown(
      example,
      tokenizer=tokenizer,
      in_input=in_input,
      in_target=in_target,
      in_mask=in_mask,
      in_positions=in_positions,
  )
  if not epy.is_notebook():
    print(result.as_text(colour=has_colour()))
  return result


def shown(
    example: Any,
    *,
    tokenizer: gm.text.Tokenizer | None = None,
    in_input: kd.kontext.Key = 'input',
    in_target: kd.kontext.Key = 'target',
    in_mask: kd.kontext.Key = 'loss_mask',
    in_positions: kd.kontext.Key = 'positions',
) -> Shown:
  """Returns what `show` prints, with its arguments."""
  tokenizer = tokenizer or gm.text.Gemma4Tokenizer()
  fields = [
      _field(example, key, argument)
      for key, argument in (
          (in_input, 'in_input'),
          (in_target, 'in_target'),
          (in_mask, 'in_mask'),
      )
  ]
  length = fields[0].shape[-1]
  tokens, targets, mask = (x.reshape(-1, length) for x in fields)
  positions = kd.kontext.get_by_path(example, in_positions, default=None)
  if positions is None:
    starts = np.arange(length) == np.zeros_like(tokens)
  else:
    starts = np.asarray(positions).reshape(-1, length) == 0
  rows = zip(tokens, targets, mask, starts, strict=True)
  pairs = [_tokens(*row, tokenizer) for row in rows]
  return Shown(*(tuple(x) for x in zip(*pairs, strict=True)))


def has_colour() -> bool:
  """Whether to print in colours."""
  return sys.stdout.isatty() and 'NO_COLOR' not in os.environ


def _field(example: Any, key: str, argument: str) -> np.ndarray:
  value = kd.kontext.get_by_path(example, key, default=None)
  if value is None:
    fields = list(kd.kontext.flatten_with_path(example))
    raise ValueError(
        f'g4.data.show: the example has no field {key!r}. Its fields are:'
        f' {fields}. Set `{argument}=`, or show an example of a task.'
    )
  return np.asarray(value)


def _tokens(
    tokens: np.ndarray,
    targets: np.ndarray,
    mask: np.ndarray,
    starts: np.ndarray,
    tokenizer: gm.text.Tokenizer,
) -> tuple[tuple[_Token, ...], int]:
  """Returns the tokens of a row, and how many of padding follow."""
  used = np.flatnonzero((tokens != 0) | (targets != 0))
  length = int(used[-1]) + 1 if used.size else 0
  pairs = []
  for i in range(length):
    if starts[i]:  # No token predicts it.
      pairs.append((int(tokens[i]), 0.0))
    pairs.append((int(targets[i]), float(mask[i])))
  return tuple(_decoded(pairs, tokenizer)), len(tokens) - length


def _decoded(pairs: Any, tokenizer: gm.text.Tokenizer) -> list[_Token]:
  """Joins the bytes of characters that the vocabulary lacks."""
  decoded: list[_Token] = []
  ids: tuple[int, ...] = ()
  data = b''
  for token_id, weight in pairs:
    token = tokenizer.tokens[token_id]
    ids += (token_id,)
    byte = _BYTE.fullmatch(token)
    if byte is None:
      text = token.replace('\u2581', ' ')
    else:
      data += bytes([int(byte[1], 16)])
      try:
        text = data.decode()
      except UnicodeDecodeError:
        if len(data) < 4:
          continue
        text = '\ufffd'
    decoded.append(_Token(text, ids, weight))
    ids, data = (), b''
  if ids:
    decoded.append(_Token('\ufffd', ids, pairs[-1][1]))
  return decoded


def _visible(text: str) -> str:
  """Shows newlines, which are tokens, too: as a sign and a line break."""
  return _escapes.escaped(text).replace('\n', '⏎\n')


def _ansi(tokens: tuple[_Token, ...]) -> str:
  texts = []
  for i, token in enumerate(tokens):
    colour = _ANSI[token.weight > 0][i % 2]
    # A background would run to the end of the line.
    text = _visible(token.text).replace('\n', f'{_RESET}\n{colour}')
    texts.append(f'{colour}{text}{_RESET}')
  return ''.join(texts)


def _plain(tokens: tuple[_Token, ...]) -> str:
  text, was_trained = '', False
  for token in tokens:
    is_trained = token.weight > 0
    if is_trained != was_trained:
      text += '⟦' if is_trained else '⟧'
    text += _visible(token.text)
    was_trained = is_trained
  return text + '⟧' * was_trained


def _html(tokens: tuple[_Token, ...]) -> str:
  texts = []
  for i, token in enumerate(tokens):
    colour = _HTML[token.weight > 0][i % 2]
    ids = ', '.join(map(str, token.ids))
    weight = f', weight {token.weight:g}' if token.weight not in (0, 1) else ''
    texts.append(
        f'<span title="{ids}{weight}" style="background:{colour};color:#111">'
        f'{html.escape(_visible(token.text))}</span>'
    )
  return ''.join(texts)
