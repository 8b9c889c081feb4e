"""A tiny SentencePiece tokenizer with Gemma 4's special tokens at their ids."""

from collections.abc import Iterable
import dataclasses
import io

from etils import epath
from gemma import gm
import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2 as model_pb2

from gemma4_lora import host
from gemma4_lora.testing import _pairs

# The file name is unlike Gemma's own: gemma looks it up in its cache first.
MODEL_PATH = (
    epath.resource_path("gemma4_lora")
    / "testing"
    / "tiny_gemma4_tokenizer.model"
)

# Gemma 4's special tokens, as the files that Google publishes have them. Those
# of ids 0 to 3 never come from text; all the others are one piece inside it.
_CONTROL_TOKENS = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>"}
_TEXT_TOKENS = {
    4: "<mask>",
    5: "[multimodal]",
    46: "<|tool>",
    47: "<tool|>",
    48: "<|tool_call>",
    49: "<tool_call|>",
    50: "<|tool_response>",
    51: "<tool_response|>",
    52: '<|"|>',
    98: "<|think|>",
    100: "<|channel>",
    101: "<channel|>",
    105: "<|turn>",
    106: "<turn|>",
    107: "\n",
    108: "\n\n",
}
_MULTIMODAL_TOKENS = {
    255999: "<|image>",
    256000: "<|audio>",
    258880: "<|image|>",
    258881: "<|audio|>",
    258882: "<image|>",
    258883: "<audio|>",
    258884: "<|video|>",
}

_TINY_VOCAB_SIZE = 1024
_FULL_VOCAB_SIZE = 262144

# Generated code that type checkers cannot read.
_ModelProto = model_pb2.ModelProto  # pyrefly: ignore[missing-attribute]
_Piece = _ModelProto.SentencePiece


@dataclasses.dataclass(frozen=True)
class Gemma4Tokenizer(gm.text.Gemma4Tokenizer):
  """Tiny tokenizer for the tiny models: 1024 pieces, Gemma 4's special tokens.

  Everything that takes `gm.text.Gemma4Tokenizer` takes it, without a download.
  It is a real SentencePiece model (BPE, byte fallback, no space added in
  front), trained on the English-French pairs of `g4.testing.EnFrPairs`.

  The special tokens of Gemma 4 below 1024 are at their ids: `<bos>` 2,
  `<|tool>` 46 to `<|"|>` 52, `<|think|>` 98, `<|channel>` 100, `<channel|>`
  101, `<|turn>` 105, `<turn|>` 106, newline 107. Those of images and audio
  start at 255999: `make_tokenizer(path, vocab_size=262144)` writes a file
  that has them too.

  Attributes:
    path: The SentencePiece file; by default the one in the package.
  """

  path: epath.PathLike = MODEL_PATH


def make_tokenizer(
    path: epath.PathLike, *, vocab_size: int = _TINY_VOCAB_SIZE
) -> Gemma4Tokenizer:
  """Trains the tiny tokenizer and writes it.

  Training reads the package's English-French pairs and is deterministic. With
  `vocab_size=262144` the first 1024 pieces are those of the tiny one, image
  and audio tokens stand at Gemma 4's ids, and the rest are placeholders that
  text never encodes to, which takes a second and 6 MB.

  Args:
    path: Where to write the SentencePiece file. It must not exist.
    vocab_size: Number of pieces: 1024, or up to Gemma 4's own 262144.

  Returns:
    The tokenizer that reads the file.

  Raises:
    ValueError: If `vocab_size` is out of range.
    FileExistsError: If there is a file at `path`.
  """
  if not _TINY_VOCAB_SIZE <= vocab_size <= _FULL_VOCAB_SIZE:
    raise ValueError(
        f"vocab_size={vocab_size} is out of range: the trained pieces need"
        f" {_TINY_VOCAB_SIZE}, and Gemma 4 has {_FULL_VOCAB_SIZE}."
    )
  path = host.path(path, who="make_tokenizer")
  if path.exists():
    raise FileExistsError(f"{path} exists: remove it, or give another path.")
  model = _train(_training_text())
  if vocab_size > _TINY_VOCAB_SIZE:
    model = _extend(model, vocab_size)
  if host.is_local(path):
    path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(model)
  return Gemma4Tokenizer(path=path)


def _training_text() -> Iterable[str]:
  """Yields the texts of a chat for each training pair."""
  for pair in _pairs.EnFrPairs(split="train"):
    # The names of the turns: single pieces, as in Gemma's vocabulary.
    yield from ("user", pair["en"], "model", pair["fr"])


def _train(text: Iterable[str]) -> bytes:
  """Returns a serialized SentencePiece model of 1024 pieces."""
  model = io.BytesIO()
  # SentencePiece hands out free ids in order: control tokens first, then these.
  user_defined = [
      _TEXT_TOKENS.get(i, _unused(i)) for i in range(4, max(_TEXT_TOKENS) + 1)
  ]
  spm.SentencePieceTrainer.Train(
      sentence_iterator=iter(text),
      model_writer=model,
      model_type="bpe",
      vocab_size=_TINY_VOCAB_SIZE,
      pad_id=0,
      eos_id=1,
      bos_id=2,
      unk_id=3,
      pad_piece=_CONTROL_TOKENS[0],
      eos_piece=_CONTROL_TOKENS[1],
      bos_piece=_CONTROL_TOKENS[2],
      unk_piece=_CONTROL_TOKENS[3],
      user_defined_symbols=user_defined,
      # The same as Gemma's own: decoding gives back the exact text.
      normalization_rule_name="identity",
      remove_extra_whitespaces=False,
      add_dummy_prefix=False,
      byte_fallback=True,
      split_digits=True,
      allow_whitespace_only_pieces=True,
      character_coverage=1.0,
      # Threads would make ties, and so the pieces, depend on timing.
      num_threads=1,
      minloglevel=2,
  )
  return model.getvalue()


def _extend(model: bytes, vocab_size: int) -> bytes:
  """Returns `model` with placeholders and multimodal tokens appended."""
  proto = _ModelProto.FromString(model)
  for i in range(len(proto.pieces), vocab_size):
    if i in _MULTIMODAL_TOKENS:
      kind, piece = _Piece.USER_DEFINED, _MULTIMODAL_TOKENS[i]
    else:
      kind, piece = _Piece.UNUSED, _unused(i)
    proto.pieces.add(piece=piece, score=0.0, type=kind)
  proto.trainer_spec.vocab_size = vocab_size
  return proto.SerializeToString()


def _unused(token_id: int) -> str:
  # Gemma counts its unused tokens from the first free id.
  return f"<unused{token_id - 6}>"
