r"""QLoRA fine-tuning of Gemma 4 12B on conversations, on one TPU chip.

```sh
hf download google/gemma-4-12B-it --local-dir=/tmp/gemma-4-12B-it
python -m kauldron.main --cfg=configs/gemma4_12b_qlora_no_robots.py \
    --cfg.workdir=/tmp/gemma4_12b_qlora_no_robots
```

The base is held in 4 bits, embedding included, and LoRA is trained on top. The
safetensors are quantised as they are read; what they hold for images and audio is
left out. With `--cfg.__args__.tiny=True` it
is a tiny model on made-up data, anywhere.

The data come from Hugging Face, too (`pip install datasets`).

Memory: 10.74 of 31.24 GiB of a chip at 1 x 2048, by the planner, which compiles it
on 2 cores (2026-12-01, libtpu 0.0.50):
`python -m gemma4_lora plan --cfg=configs/gemma4_12b_qlora_no_robots.py --topology=v6e:1x1`.

| machine | batch | memory | time | eval loss |
|---|---|---|---|---|
| TPU v6e, 1 chip | 1 x 2048 | 10.74 GiB | not measured | not measured |
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
          # Groups of 32 weights, 4.5 bits each.
          quantize="int4",
          model=g4.nn.Gemma4_12B(tokens="batch.input"),
          # Memory
          logits_in_training=False,
          remat="block",
          attention="blockwise",
          # Compile time
          scan_layers=True,
      ),
      # Weights
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=g4.ckpts.PartialLoad(path="/tmp/gemma-4-12B-it"),
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
