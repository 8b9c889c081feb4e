r"""LoRA fine-tuning of Gemma 4 E2B on long rows of several conversations each.

```sh
python -m kauldron.main --cfg=configs/gemma4_e2b_lora_packed.py \
    --cfg.workdir=/tmp/gemma4_e2b_lora_packed
```

With `--cfg.__args__.tiny=True` it is a tiny model on made-up data, anywhere.

Conversations of a row do not see each other, and there is hardly any padding.
When it starts, all are tokenized once, to learn how they fit.

The weights come from Google's public bucket, the data from Hugging Face (`pip
install datasets`). For other hardware, override `--cfg.train_ds.batch_size=...`.

Memory: 24.10 of 31.24 GiB of a chip at 4 x 8192, by the planner

| machine | batch | memory | time | eval loss |
|---|---|---|---|---|
| TPU v6e, 1 chip | 4 x 8192 | 24.10 GiB | not measured | not measured |
"""

from kauldron import konfig

from gemma4_lora import tiny

# pylint: disable=g-import-not-at-top
with konfig.imports():
  from gemma import gm
  from kauldron import kd
  import optax

  from gemma4_lora import g4
# pylint: enable=g-import-not-at-top

ConfigArgs = tiny.ConfigArgs


def get_config(args: ConfigArgs = ConfigArgs()):
  cfg = kd.train.Trainer(
      seed=42,
      # Data
      train_ds=_make_dataset(split="train_sft"),
      # Model
      model=g4.nn.LoRA(
          rank=16,
          alpha=32,
          model=gm.nn.Gemma4_E2B(tokens="batch.input"),
          positions="batch.positions",  # Of each conversation.
          # Memory
          logits_in_training=False,
          remat="attention",
          attention="blockwise",
      ),
      # Weights
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=gm.ckpts.LoadCheckpoint(
              path=gm.ckpts.CheckpointPath.GEMMA4_E2B_IT,
          ),
      ),
      # Training
      trainstep=g4.train.TrainStep(),
      num_train_steps=3_000,
      train_losses={
          "xentropy": g4.losses.SoftmaxCrossEntropyWithIntLabels(
              head="preds.head",
              labels="batch.target",
              mask="batch.loss_mask",
          ),
      },
      train_metrics={
          "padding_efficiency": g4.data.PaddingEfficiency(tokens="batch.input"),
      },
      optimizer=kd.optim.partial_updates(
          optax.adamw(learning_rate=1e-4),
          mask=kd.optim.select("lora"),
      ),
      checkpointer=g4.ckpts.LoRACheckpointer(save_interval_steps=200),
      writer=g4.train.TerminalWriter(),
      # Evaluation
      evals={
          "eval": kd.evals.Evaluator(
              run=kd.evals.EveryNSteps(n=500),
              ds=_make_dataset(split="test_sft"),
          ),
      },
  )
  return tiny.shrink(cfg) if args.tiny else cfg


def _make_dataset(*, split: str):
  return kd.data.py.DataSource(
      data_source=g4.data.PackedSource(
          data_source=kd.data.py.HuggingFace(
              path="HuggingFaceH4/ultrachat_200k", split=split, shuffle=False
          ),
          transforms=[
              g4.data.ChatTask(
                  layout="messages",
                  tokenizer=gm.text.Gemma4Tokenizer(),
                  max_length=8192,
                  truncate=True,
                  max_malformed=0.05,
              ),
          ],
      ),
      shuffle=split == "train_sft",
      num_epochs=None if split == "train_sft" else 1,
      batch_size=4,
      num_workers=4,
  )
