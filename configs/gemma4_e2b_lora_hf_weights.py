r"""LoRA fine-tuning of Gemma 4 E2B, from Hugging Face's weights to a PEFT folder.

```sh
hf download google/gemma-4-E2B-it --local-dir=/tmp/gemma-4-E2B-it
python -m kauldron.main --cfg=configs/gemma4_e2b_lora_hf_weights.py \
    --cfg.workdir=/tmp/gemma4_e2b_lora_hf_weights
python -m gemma4_lora export --cfg=configs/gemma4_e2b_lora_hf_weights.py \
    --cfg.workdir=/tmp/gemma4_e2b_lora_hf_weights --out=/tmp/my_lora
```

The safetensors are read as they are, towers left out. With
`--cfg.__args__.tiny=True` it is a tiny model on made-up data, anywhere.

The data come from Hugging Face, too (`pip install datasets`). What is trained on
is rendered as its chat template does. For other hardware, override
`--cfg.train_ds.batch_size=...`.

Memory: 13.84 of 31.24 GiB of a chip at 8 x 1024, by the planner

| machine | batch | memory | time | eval loss |
|---|---|---|---|---|
| TPU v6e, 1 chip | 8 x 1024 | 13.84 GiB | not measured | not measured |
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
      train_ds=_make_dataset(split="train", batch_size=8),
      # Model
      model=g4.nn.LoRA(
          rank=16,
          alpha=32,
          model=gm.nn.Gemma4_E2B(tokens="batch.input"),
          # Memory
          logits_in_training=False,
          remat="attention",
          attention="blockwise",
      ),
      # Weights
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=g4.ckpts.PartialLoad(path="/tmp/gemma-4-E2B-it"),
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
              ds=_make_dataset(split="test", batch_size=8),
          ),
          "sampling": gm.evals.SamplerEvaluator(
              run=kd.evals.EveryNSteps(n=500),
              ds=_make_dataset(split="test", sampling=True),
              num_batches=5,
              max_new_tokens=300,
              # Prompts of other lengths would compile again.
              pad_length=1024,
              cache_length=2048,
          ),
      },
  )
  return tiny.shrink(cfg) if args.tiny else cfg


def _make_dataset(
    *, split: str, batch_size: int | None = None, sampling: bool = False
):
  return kd.data.py.HuggingFace(
      path="HuggingFaceH4/no_robots",
      split=split,
      shuffle=split == "train",
      num_epochs=None if split == "train" else 1,
      batch_size=batch_size,
      num_workers=4,
      transforms=[
          kd.data.Elements(keep=["messages"]),
          g4.data.ChatTask(
              layout="messages",
              template="transformers",
              tokenizer=gm.text.Gemma4Tokenizer(),
              max_length=1024,
              truncate=True,
              max_malformed=0.05,  # Among them, prompts that are longer.
              sampling=sampling,
          ),
      ],
  )
