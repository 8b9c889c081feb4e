"""Tests of the tiny tokenizer."""

from gemma import gm
import pytest

from gemma4_lora import g4

# As in the tokenizer files that are published with Gemma 4.
_SPECIAL_TOKENS = {
    0: "<pad>",
    1: "<eos>",
    2: "<bos>",
    3: "<unk>",
    4: "<mask>",
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

_TEXTS = [
    "The cat sleeps.",
    "Où est l'hôtel ? Ça, c'est près de la forêt : voilà mon cœur.",
    " leading, trailing and  double spaces ",
    "\n",
    "one\ntwo\n\nthree\n\n\nfour\ttab",
    "日本語 🙂 ½",
    "<|turn>user\nBonjour !<turn|>\n<|turn>model\n",
    "",
]


@pytest.fixture(scope="module")
def tiny():
  return g4.testing.Gemma4Tokenizer()


@pytest.fixture(scope="module")
def full(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "full.model"
  return g4.testing.make_tokenizer(path, vocab_size=262144)


@pytest.mark.parametrize("token_id, token", _SPECIAL_TOKENS.items())
def test_special_tokens_have_gemma4_ids(tiny, token_id, token):
  assert tiny.tokens[token_id] == token


@pytest.mark.parametrize(
    "token_id, token", [x for x in _SPECIAL_TOKENS.items() if x[0] > 3]
)
def test_special_tokens_are_one_id_inside_text(tiny, token_id, token):
  before, after = tiny.encode("le chat"), tiny.encode("dort")
  assert tiny.encode(f"le chat{token}dort") == [*before, token_id, *after]


@pytest.mark.parametrize("token", ["<pad>", "<eos>", "<bos>", "<unk>"])
def test_text_cannot_write_control_tokens(tiny, token):
  assert min(tiny.encode(token)) > 4


def test_ids_are_those_of_gemmas_special_tokens(tiny):
  special = tiny.special_tokens
  assert tiny.encode("<|turn>") == [special.START_OF_TURN]
  assert tiny.encode("<turn|>") == [special.END_OF_TURN]
  assert tiny.encode("<|tool_response>") == [special.BEGIN_OF_TOOL_RESPONSE]
  assert tiny.encode("", add_bos=True, add_eos=True) == [
      special.BOS,
      special.EOS,
  ]


@pytest.mark.parametrize("text", _TEXTS)
def test_text_survives_a_round_trip(tiny, text):
  assert tiny.decode(tiny.encode(text)) == text


def test_all_pairs_survive_a_round_trip_without_byte_pieces(tiny):
  for pair in g4.testing.EnFrPairs(split="train"):
    for text in pair.values():
      assert tiny.decode(tiny.encode(text)) == text
      assert not any(t.startswith("<0x") for t in tiny.split(text))


def test_no_space_is_added_in_front(tiny):
  assert tiny.split("Le chat") == ["Le", " chat"]


@pytest.mark.parametrize("role", ["user", "model"])
def test_names_of_turns_are_single_pieces(tiny, role):
  assert tiny.split(f"<|turn>{role}\n") == ["<|turn>", role, "\n"]


@pytest.mark.parametrize(
    "name", ["Gemma4_E2B", "Gemma4_E4B", "Gemma4_31B", "Gemma4_26B_A4B"]
)
def test_vocabulary_is_that_of_the_tiny_models(tiny, name):
  model = getattr(g4.testing, name)
  assert tiny.vocab_size == model.config.num_embed == 1024
  assert tiny.VERSION == model.INFO.tokenizer_version
  assert isinstance(tiny, gm.text.Gemma4Tokenizer)


def test_the_packaged_file_is_what_make_tokenizer_makes(tiny, tmp_path):
  remade = g4.testing.make_tokenizer(tmp_path / "new" / "tiny.model")
  assert remade.tokens == tiny.tokens
  for text in _TEXTS:
    assert remade.encode(text) == tiny.encode(text)


@pytest.mark.parametrize("token_id, token", _MULTIMODAL_TOKENS.items())
def test_full_size_has_the_multimodal_tokens(full, token_id, token):
  assert full.tokens[token_id] == token
  assert full.encode(f"a{token}b")[1] == token_id
  assert full.decode(full.encode(token)) == token


def test_full_size_encodes_text_as_the_tiny_one(tiny, full):
  assert full.vocab_size == 262144
  for text in _TEXTS:
    assert full.encode(text) == tiny.encode(text)
    assert full.decode(full.encode(text)) == text


@pytest.mark.parametrize("vocab_size", [1023, 262145])
def test_vocab_size_out_of_range_is_an_error(tmp_path, vocab_size):
  with pytest.raises(ValueError, match=f"vocab_size={vocab_size} is out of"):
    g4.testing.make_tokenizer(tmp_path / "x.model", vocab_size=vocab_size)


def test_no_file_is_overwritten(tmp_path):
  path = tmp_path / "x.model"
  path.write_text("mine")
  with pytest.raises(FileExistsError, match="exists: remove it"):
    g4.testing.make_tokenizer(path)
  assert path.read_text() == "mine"
