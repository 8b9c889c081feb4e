"""A vocabulary of Gemma 4's size, whose pieces are words: 262,144 of them.

```sh
python -m tests.benchmarks.vocabulary /tmp/large.model
```

How fast a text is tokenized depends on the vocabulary. That of `g4.testing` has
1,024 pieces. This one has as many as Gemma 4's, and its tags at their ids. It is
made of the words of Python's own sources, in a few seconds and without training:
each word is merged from its left, so that all its beginnings are pieces, and
frequent words are merged first.
"""

import collections
import pathlib
import re
import sys
import sysconfig

from sentencepiece import sentencepiece_model_pb2 as model_pb2

from gemma4_lora import g4

_SIZE = 262_144
_SPACE = '\u2581'
_LONGEST = 16  # Characters of a piece.


def make(path: pathlib.Path) -> g4.testing.Gemma4Tokenizer:
  """Writes the vocabulary, and returns its tokenizer."""
  g4.testing.make_tokenizer(path, vocab_size=_SIZE)
  model = model_pb2.ModelProto.FromString(path.read_bytes())
  normal = model_pb2.ModelProto.SentencePiece.NORMAL
  unused = model_pb2.ModelProto.SentencePiece.UNUSED
  known = {piece.piece for piece in model.pieces}
  free = [piece for piece in model.pieces if piece.type == unused]
  lowest = min(piece.score for piece in model.pieces)
  words = (word for word in _pieces() if word not in known)
  for i, (piece, word) in enumerate(zip(free, words, strict=False)):
    piece.piece, piece.type, piece.score = word, normal, lowest - 1 - i
  path.write_bytes(model.SerializeToString())
  return g4.testing.Gemma4Tokenizer(path=path)


def _pieces() -> list[str]:
  """Returns the beginnings of words, frequent ones first."""
  counts: collections.Counter[str] = collections.Counter()
  for file in sorted(pathlib.Path(sysconfig.get_path('stdlib')).rglob('*.py')):
    text = file.read_text(encoding='utf-8', errors='ignore')
    counts.update(re.findall(r' ?[A-Za-z]+', text))
  pieces: collections.Counter[str] = collections.Counter()
  for word, count in counts.items():
    word = word.replace(' ', _SPACE)
    for n in range(1, min(len(word), _LONGEST) + 1):
      pieces[word[:n]] += count
  # If numbers are equal, the shorter first: it is merged before what it begins.
  return sorted(pieces, key=lambda x: (-pieces[x], len(x), x))


if __name__ == '__main__':
  make(pathlib.Path(sys.argv[1]))
