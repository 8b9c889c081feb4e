"""Tests of ChatTask: what the model sees, and where the loss is."""

import dataclasses
import pickle

import dialog
from gemma import gm
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece as spm

from gemma4_lora import g4

_TOKENIZER = g4.testing.Gemma4Tokenizer()
_TASK = g4.data.ChatTask(
    in_prompt="en",
    in_response="fr",
    tokenizer=_TOKENIZER,
    max_length=48,
    inline_markup="parse",
    empty_answers="train",
)
_PAIRS = [
    ("Good morning.", "Bonjour."),
    ("Where is the hotel?", "Où est l'hôtel ?"),
    # Whitespace at the seams, which tokens could span.
    ("two\nlines\n", "\n\ndeux lignes "),
    ("  ", " "),
    ("", ""),
    ("1 + 1?", "<|channel>thought\nEasy.\n<channel|>2"),
]
_pairs = pytest.mark.parametrize("en, fr", _PAIRS)


def _map(task=_TASK, **example):
  return task.map(example)


def _sequence(out):
  """Returns all tokens of an example, without the padding."""
  length = np.flatnonzero(out["loss_mask"][:, 0])[-1] + 1
  return [int(out["input"][0]), *map(int, out["target"][:length, 0])]


def test_output_has_the_shapes_that_kauldrons_loss_takes():
  out = _map(en="Good morning.", fr="Bonjour.")
  assert {k: (v.shape, v.dtype) for k, v in out.items()} == {
      "input": ((48,), np.int32),
      "target": ((48, 1), np.int32),
      "loss_mask": ((48, 1), np.bool_),
  }


@_pairs
def test_tokens_are_the_dialog_of_both_turns(en, fr):
  conversation = dialog.Conversation(dialog.User(en), dialog.Model(fr))
  bos, *tokens = _sequence(_map(en=en, fr=fr))
  assert bos == _TOKENIZER.special_tokens.BOS
  assert _TOKENIZER.decode(tokens) == conversation.as_text(training=True)


def test_turns_look_like_gemma4s():
  _, *tokens = _sequence(_map(en="Good morning.", fr="Bonjour."))
  assert _TOKENIZER.decode(tokens) == (
      "<|turn>user\nGood morning.<turn|>\n<|turn>model\nBonjour.<turn|>"
  )


@_pairs
def test_loss_is_on_the_response_and_its_end_of_turn(en, fr):
  out = _map(en=en, fr=fr)
  trained = out["target"][out["loss_mask"]]
  assert _TOKENIZER.decode(trained) == f"{fr}<turn|>"
  assert trained[-1] == _TOKENIZER.special_tokens.END_OF_TURN


@_pairs
def test_target_is_the_input_one_step_ahead(en, fr):
  out = _map(en=en, fr=fr)
  tokens = _sequence(out)
  n = len(tokens) - 1
  np.testing.assert_array_equal(out["input"][:n], tokens[:-1])
  np.testing.assert_array_equal(out["target"][:n, 0], tokens[1:])
  for value in out.values():
    assert not value[n:].any()


@_pairs
def test_prompt_of_sampling_is_an_exact_prefix(en, fr):
  prompt = dialog.Conversation(dialog.User(en)).as_text()
  prompt = _TOKENIZER.encode(prompt, add_bos=True)
  out = _map(en=en, fr=fr)
  assert _sequence(out)[: len(prompt)] == prompt
  assert np.argmax(out["loss_mask"]) == len(prompt) - 1


def test_chat_sampler_feeds_the_prompt_that_was_trained(tmp_path):
  model = g4.testing.Gemma4_E2B(tokens="batch.input")
  params = g4.testing.make_checkpoint(model, tmp_path / "base")
  sampler = gm.text.ChatSampler(
      model=model,
      params=jax.tree.map(jnp.asarray, params),
      tokenizer=_TOKENIZER,
      cache_length=64,
      max_out_length=2,
      pad_length=32,
  )
  sampler.chat("two\nlines\n", max_new_tokens=1)
  fed = _TOKENIZER.encode(sampler.turns[0].text, add_bos=True)
  out = _map(en="two\nlines\n", fr="deux lignes")
  assert _sequence(out)[: len(fed)] == fed


def test_sampling_gives_the_same_texts_for_samplers():
  task = dataclasses.replace(_TASK, sampling=True, max_length=None)
  assert _map(task, en="Good morning.", fr="Bonjour.") == {
      "input": "<|turn>user\nGood morning.<turn|>\n<|turn>model\n",
      "target": "Bonjour.<turn|>",
  }


@pytest.mark.parametrize(
    "as_tfds",
    [str.encode, np.str_, lambda x: np.bytes_(x.encode()), np.array],
)
def test_bytes_and_numpy_texts_are_texts(as_tfds):
  out = _map(en=as_tfds("Où ?"), fr=as_tfds("Là."))
  expected = _map(en="Où ?", fr="Là.")
  jax.tree.map(np.testing.assert_array_equal, out, expected)


def test_inputs_are_dropped_others_stay_and_the_callers_are_untouched():
  example = {"en": "Yes.", "fr": "Oui.", "id": 7}
  out = _TASK.map(example)
  assert set(out) == {"input", "target", "loss_mask", "id"}
  assert example == {"en": "Yes.", "fr": "Oui.", "id": 7}
  kept = dataclasses.replace(_TASK, drop_inputs=False).map(example)
  assert kept["en"] == "Yes." and kept["fr"] == "Oui."


def test_keys_may_be_paths_and_the_outputs_other_names():
  task = dataclasses.replace(
      _TASK,
      in_prompt="pair.en",
      in_response="pair.fr",
      out_input="tokens",
      out_target="labels",
      out_target_mask="weights",
  )
  out = task.map({"pair": {"en": "Yes.", "fr": "Oui.", "id": 7}})
  assert set(out) == {"pair", "tokens", "labels", "weights"}
  assert out["pair"] == {"id": 7}


def test_a_field_may_be_called_as_a_method_of_dict():
  """`kontext.get_by_path` gives the method."""
  task = dataclasses.replace(_TASK, in_prompt="items", in_response="values")
  out = _map(task, items="Good morning.", values="Bonjour.")
  wanted = _map(en="Good morning.", fr="Bonjour.")
  np.testing.assert_array_equal(out["target"], wanted["target"])
  assert out.keys() == wanted.keys()


def test_an_output_below_what_is_not_there_is_an_error():
  task = dataclasses.replace(_TASK, out_input="new.tokens")
  with pytest.raises(KeyError, match="'new'.*Available keys"):
    _map(task, en="Good morning.", fr="Bonjour.")


def test_a_pickled_task_works_as_in_a_data_worker():
  _map(en="Yes.", fr="Oui.")  # What it has cached must not stop it.
  task = pickle.loads(pickle.dumps(_TASK))
  out = task.map({"en": "Yes.", "fr": "Oui."})
  jax.tree.map(np.testing.assert_array_equal, out, _map(en="Yes.", fr="Oui."))


@pytest.mark.parametrize(
    "tokenizer", [gm.text.Gemma3Tokenizer, gm.text.Gemma2Tokenizer]
)
def test_a_tokenizer_of_another_gemma_is_an_error(tokenizer):
  match = (
      rf"tokenizer={tokenizer.__name__} is of Gemma {tokenizer.VERSION}"
      r".*Write `tokenizer=gm.text.Gemma4Tokenizer\(\)`"
  )
  with pytest.raises(ValueError, match=match):
    dataclasses.replace(_TASK, tokenizer=tokenizer())


def test_a_vocabulary_file_of_another_gemma_is_an_error(tmp_path):
  spm.SentencePieceTrainer.Train(
      sentence_iterator=iter(["the cat sleeps", "le chat dort"]),
      model_prefix=str(tmp_path / "other"),
      vocab_size=300,
      byte_fallback=True,
      hard_vocab_limit=False,
      minloglevel=2,
  )
  tokenizer = gm.text.Gemma4Tokenizer(path=tmp_path / "other.model")
  task = dataclasses.replace(_TASK, tokenizer=tokenizer)
  with pytest.raises(
      ValueError, match=r"other.model is not Gemma 4's.*\[105\]"
  ):
    task.map({"en": "Yes.", "fr": "Oui."})


def test_no_max_length_is_an_error():
  with pytest.raises(ValueError, match="needs `max_length=`"):
    dataclasses.replace(_TASK, max_length=None)


def test_a_longer_example_without_truncate_is_an_error():
  tokens = _sequence(_map(en="Good morning.", fr="Bonjour."))
  prompt = _TOKENIZER.encode("Bonjour.<turn|>")
  n, r = len(tokens), len(prompt)
  fits = dataclasses.replace(_TASK, max_length=n - 1)
  assert _sequence(_map(fits, en="Good morning.", fr="Bonjour.")) == tokens

  short = dataclasses.replace(_TASK, max_length=n - 2)
  match = (
      rf"{n - 1} tokens \(prompt {n - r}, response {r}.*max_length={n - 2}\."
      r".*`truncate=True`"
  )
  with pytest.raises(ValueError, match=match):
    _map(short, en="Good morning.", fr="Bonjour.")


def test_truncate_cuts_the_end():
  whole = _map(en="Good morning.", fr="Bonjour.")
  n = len(_sequence(whole)) - 2
  task = dataclasses.replace(_TASK, max_length=n, truncate=True)
  cut = _map(task, en="Good morning.", fr="Bonjour.")
  jax.tree.map(
      np.testing.assert_array_equal, cut, {k: v[:n] for k, v in whole.items()}
  )


def test_a_response_that_is_cut_whole_is_an_error():
  prompt = dialog.Conversation(dialog.User("Good morning.")).as_text()
  n = len(_TOKENIZER.encode(prompt, add_bos=True))
  task = dataclasses.replace(_TASK, max_length=n, truncate=True)
  assert _map(task, en="Good morning.", fr="Bonjour.")["loss_mask"].sum() == 1

  task = dataclasses.replace(task, max_length=n - 1)
  match = (
      rf"max_length={n - 1}: .* cut the whole.*DropLongPrompts\(in_prompt='en'"
  )
  with pytest.raises(ValueError, match=match):
    _map(task, en="Good morning.", fr="Bonjour.")


@pytest.mark.parametrize("tag", ["<|turn>", "<turn|>"])
@pytest.mark.parametrize("field", ["en", "fr"])
def test_a_turn_tag_in_a_text_is_an_error(tag, field):
  example = {"en": "Yes.", "fr": "Oui."} | {field: f"a{tag}\nb"}
  with pytest.raises(ValueError, match=f"'{field}' has the turn tag") as e:
    _TASK.map(example)
  assert tag in str(e.value)


def test_a_missing_field_is_an_error_with_a_suggestion():
  task = dataclasses.replace(_TASK, in_prompt="source")
  with pytest.raises(KeyError, match="no field 'source'.*mean 'sources'"):
    task.map({"sources": "Yes.", "fr": "Oui."})
  with pytest.raises(
      KeyError, match=r"no field 'fr'. Its fields are: \['en'\]"
  ):
    _map(en="Yes.")


@pytest.mark.parametrize("value", [3, ["Yes."], None, np.zeros(2)])
def test_a_field_that_is_no_text_is_an_error(value):
  with pytest.raises(ValueError, match="'en' should be text .* but it is a"):
    _map(en=value, fr="Oui.")
