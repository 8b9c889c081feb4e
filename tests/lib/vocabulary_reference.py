# /// script
# requires-python = ">=3.11"
# dependencies = ["gguf==0.19.0", "sentencepiece==0.2.1", "protobuf>=5"]
# ///
"""Gemma 4's own vocabulary, as a SentencePiece model: no test imports this.

```sh
uv run tests/lib/vocabulary_reference.py SOURCE OUT
```

SOURCE is the folder `vendor/llama.cpp/models` of PyPI's source package
llama-cpp-python 0.3.36, which has the vocabulary that Google published under the
Apache License 2.0, with lists of tokens for it. What this writes to OUT is in
`tests/testdata`.
"""

import argparse
import pathlib
import shutil

import gguf
from sentencepiece import sentencepiece_model_pb2

_NAME = 'ggml-vocab-gemma-4'
_KINDS = sentencepiece_model_pb2.ModelProto.SentencePiece
_CONTROL = ('<pad>', '<eos>', '<bos>')


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('source', type=pathlib.Path)
  parser.add_argument('out', type=pathlib.Path)
  args = parser.parse_args()
  fields = gguf.GGUFReader(args.source / f'{_NAME}.gguf').fields

  def field(name):
    return fields[f'tokenizer.ggml.{name}'].contents()

  pieces, kinds = field('tokens'), field('token_type')
  ranks = {}
  for rank, merge in enumerate(field('merges')):
    if merge.count(' ') == 1:
      ranks.setdefault(merge.replace(' ', ''), rank)
  model = sentencepiece_model_pb2.ModelProto()
  for piece, kind in zip(pieces, kinds, strict=True):
    model.pieces.add(piece=piece, **_kind(piece, kind, ranks))
  model.trainer_spec.model_type = model.trainer_spec.BPE
  model.trainer_spec.byte_fallback = True
  model.trainer_spec.vocab_size = len(pieces)
  for i, name in enumerate(('pad', 'eos', 'bos', 'unk')):
    setattr(model.trainer_spec, f'{name}_id', i)
    setattr(model.trainer_spec, f'{name}_piece', f'<{name}>')
  model.normalizer_spec.name = 'identity'
  model.normalizer_spec.add_dummy_prefix = False
  model.normalizer_spec.remove_extra_whitespaces = False
  model.normalizer_spec.escape_whitespaces = True
  (args.out / 'gemma4.model').write_bytes(model.SerializeToString())
  for end in ('inp', 'out'):
    shutil.copy(
        args.source / f'{_NAME}.gguf.{end}', args.out / f'{_NAME}.{end}'
    )


def _kind(piece: str, kind: int, ranks: dict[str, int]) -> dict[str, object]:
  """Returns type and score: BPE merges what scores highest first."""
  if piece == '<unk>':
    return {'type': _KINDS.UNKNOWN, 'score': 0.0}
  if piece in _CONTROL:
    return {'type': _KINDS.CONTROL, 'score': 0.0}
  if kind == gguf.TokenType.BYTE:
    return {'type': _KINDS.BYTE, 'score': 0.0}
  if kind == gguf.TokenType.NORMAL and piece in ranks:
    return {'type': _KINDS.NORMAL, 'score': -float(ranks[piece])}
  if kind == gguf.TokenType.NORMAL and len(piece) == 1:
    return {'type': _KINDS.NORMAL, 'score': -1e6}
  # Tags, and what no merge makes.
  return {'type': _KINDS.USER_DEFINED, 'score': 0.0}


if __name__ == '__main__':
  main()
