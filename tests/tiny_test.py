"""What `tiny.shrink` replaces, and what it leaves as it is."""

import json

from kauldron import konfig
import pytest

from gemma4_lora import tiny
from tests.lib import shipped

# pylint: disable=g-import-not-at-top
with konfig.imports():
  from gemma import gm
  from kauldron import kd
  import optax

  from gemma4_lora import g4
# pylint: enable=g-import-not-at-top


def _config(**kwargs):
  """A config of a user's own: messages in a file, two loaders in one."""
  return kd.train.Trainer(
      model=g4.nn.LoRA(rank=3, model=gm.nn.Gemma4_31B(tokens="batch.input")),
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=gm.ckpts.LoadCheckpoint(path="gs://bucket/checkpoint"),
      ),
      train_ds=kd.data.py.Json(
          path="chats.json",
          shuffle=True,
          batch_size=256,
          transforms=[
              g4.data.ChatTask(
                  layout="sharegpt",
                  in_messages="turns",
                  tokenizer=gm.text.Gemma4Tokenizer(),
                  max_length=4096,
              ),
          ],
      ),
      optimizer=optax.adamw(1e-5),
      num_train_steps=1000,
      checkpointer=kd.ckpts.Checkpointer(save_interval_steps=100),
      workdir="/nowhere",
      **kwargs,
  )


def test_a_config_of_ones_own():
  cfg = tiny.shrink(_config())
  trainer = konfig.resolve(konfig.ConfigDict(json.loads(cfg.to_json())))
  assert type(trainer.model.model).__module__.startswith("gemma4_lora.testing")
  assert type(trainer.model.model).__name__ == "Gemma4_31B"
  assert trainer.model.model.tokens == "batch.input"
  assert trainer.model.rank == 3
  path = trainer.init_transform.wrapped.path
  assert path.layout == "nested" and type(path.model) is type(
      trainer.model.model
  )
  assert trainer.optimizer is not None
  (task,) = trainer.train_ds.transforms
  assert (task.max_length, trainer.train_ds.batch_size) == (64, 8)
  row = trainer.train_ds.data_source[0]
  assert set(row) == {"turns"}
  assert [turn["from"] for turn in row["turns"]] == ["human", "gpt"]


@pytest.mark.parametrize("path", ["gs://bucket/x", "/home/me/x"])
@pytest.mark.parametrize("loader", ["LoadCheckpoint", "PartialLoad"])
def test_format_of_the_weights(loader, path):
  cfg = _config()
  load = {
      "LoadCheckpoint": gm.ckpts.LoadCheckpoint,
      "PartialLoad": g4.ckpts.PartialLoad,
  }[loader]
  cfg.init_transform = load(path=path)
  is_hf = (loader, path) == ("PartialLoad", "/home/me/x")
  tiny.shrink(cfg)
  assert cfg.init_transform.path.layout == ("hf" if is_hf else "nested")


def test_weights_of_hugging_face_stay_safetensors():
  path, *_ = shipped.RUNS["gemma4_e2b_lora_hf_weights"]
  cfg = shipped.config(path, tiny=True)
  assert cfg.init_transform.wrapped.path.layout == "hf"


@pytest.mark.parametrize(
    ("quantize", "want"),
    [
        ("nf4", [g4.quant.NF4(group_size=2)]),
        (g4.quant.Int4("mlp"), [g4.quant.Int4("mlp", group_size=2)]),
        (
            [g4.quant.Int8("embeddings"), "int4"],
            [g4.quant.Int8("embeddings"), g4.quant.Int4(group_size=2)],
        ),
    ],
)
def test_groups_divide_the_tiny_widths(quantize, want):
  cfg = _config()
  cfg.model.quantize = quantize
  assert list(konfig.resolve(tiny.shrink(cfg)).model.quantize) == list(
      konfig.resolve(konfig.ConfigDict({"x": want})).x
  )


def test_false_is_the_real_one():
  path, *_ = shipped.RUNS["gemma4_e2b_lora_packed"]
  real = shipped.config(path)
  assert shipped.by_flags(path, "--cfg.__args__.tiny=False") == real
  assert shipped.by_flags(path, shipped.SHRINK) != real


def test_a_config_without_gemma4():
  cfg = _config()
  cfg.model = g4.nn.LoRA(rank=3, model=gm.nn.Gemma3_4B(tokens="batch.input"))
  with pytest.raises(ValueError, match=r"cfg.model has 0 gm.nn.Gemma4_"):
    tiny.shrink(cfg)


def test_data_without_a_task():
  cfg = _config()
  cfg.train_ds.transforms = []
  with pytest.raises(
      ValueError, match=r"py.Json has no task in its transforms"
  ):
    tiny.shrink(cfg)


def test_a_mix_of_chats_and_texts():
  text = g4.data.TextTask(
      in_text="body", tokenizer=gm.text.Gemma4Tokenizer(), max_length=4096
  )
  chat = g4.data.ChatTask(
      layout="gemini", tokenizer=gm.text.Gemma4Tokenizer(), max_length=4096
  )
  cfg = _config()
  del cfg.train_ds
  cfg.train_ds = kd.data.py.Mix(
      datasets=[
          g4.data.Files(path="*.jsonl.gz", shuffle=True, transforms=[task])
          for task in (text, chat)
      ],
      weights=[3, 1],
      batch_size=256,
      num_workers=16,
      seed=0,
  )
  ds = konfig.resolve(tiny.shrink(cfg).train_ds)
  assert (ds.batch_size, ds.num_workers, ds.weights) == (8, 0, (3, 1))
  batch = next(iter(ds))
  assert {k: x.shape for k, x in batch.items()} == {
      "input": (8, 64),
      "target": (8, 64, 1),
      "loss_mask": (8, 64, 1),
  }


@pytest.mark.parametrize(
    "name, answers, keys",
    [
        ("PreferenceTask", ["chosen", "rejected"], {"in_images": "photo"}),
        ("UnpairedTask", ["said"], {"in_completion": "said"}),
    ],
)
def test_rows_of_judged_answers(name, answers, keys):
  cfg = _config()
  make = getattr(g4.data, name)
  tokenizer = gm.text.Gemma4Tokenizer()
  cfg.train_ds.transforms = [
      make(layout="messages", tokenizer=tokenizer, max_length=4096, **keys)
  ]
  ds = konfig.resolve(tiny.shrink(cfg).train_ds)
  for i, row in enumerate([ds.data_source[0], ds.data_source[1]]):
    assert row.get("label", i == 0) == (i == 0)
    for key in answers:
      conversation = ds.transforms[0].answered(row, key)
      assert conversation.num_images == (0 if i else len(row.get("photo", ())))
      assert [m.role for m in conversation.messages] == ["user", "model"]
