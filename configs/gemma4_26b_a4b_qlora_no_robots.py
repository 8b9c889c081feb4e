r"""QLoRA fine-tuning of Gemma 4 26B_A4B, experts too, on one TPU chip.

```sh
python -m kauldron.main --cfg=configs/gemma4_26b_a4b_qlora_no_robots.py \
    --cfg.workdir=/tmp/gemma4_26b_a4b_qlora_no_robots
```

The base is held in 4 bits, experts and embedding included, and LoRA is trained on
top: on the linears of the text tower and on each routed expert. The released
checkpoint is quantised as it is read. With `--cfg.__args__.tiny=True` it is a tiny
model on made-up data, anywhere.

The weights come from Google's public bucket, the data from Hugging Face (`pip
install datasets`).

Memory: 28.29 of 31.24 GiB of a chip at 1 x 2048, by the planner, which compiles it
in 9 CPU minutes and 7 GB. With experts of rank 16, A, B and Adam's state take 7.46
GiB in place of 3.84, and it does not fit, by 0.05.

| machine | batch | memory | time | eval loss |
|---|---|---|---|---|
| TPU v6e, 1 chip | 1 x 2048 | 28.29 GiB | not measured | not measured |
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
      train_ds=_make_dataset(split="train"),
      # Model
      model=g4.nn.LoRA(
          rank=16,
          alpha=32,
          # The routed experts too: 128 in each layer, whose A and B of rank 16
          # would take, with Adam's state, more than half of what the base takes.
          targets=["text", g4.targets.experts(rank=8, alpha=16)],
          # Groups of 32 weights, 4.5 bits each.
          quantize="int4",
          model=gm.nn.Gemma4_26B_A4B(tokens="batch.input"),
          # Memory
          logits_in_training=False,
          remat="block",
          attention="blockwise",
          # Compile time
          scan_layers=True,
      ),
      # Weights
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=gm.ckpts.LoadCheckpoint(
              path=gm.ckpts.CheckpointPath.GEMMA4_26B_A4B_IT,
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
              ds=_make_dataset(split="test"),
          ),
      },
  )
  return tiny.shrink(cfg) if args.tiny else cfg


def _make_dataset(*, split: str):
  return kd.data.py.HuggingFace(
      path="HuggingFaceH4/no_robots",
      split=split,
      shuffle=split == "train",
      num_epochs=None if split == "train" else 1,
      batch_size=1,
      num_workers=4,
      transforms=[
          kd.data.Elements(keep=["messages"]),
          g4.data.ChatTask(
              layout="messages",
              thinking="empty",  # As the larger models have it.
              tokenizer=gm.text.Gemma4Tokenizer(),
              max_length=2048,
              truncate=True,
              max_malformed=0.05,  # Among them, prompts that are longer.
          ),
      ],
  )
