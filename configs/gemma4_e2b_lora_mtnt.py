r"""LoRA fine-tuning of Gemma 4 E2B on MTNT, English to French.

```sh
python -m kauldron.main --cfg=configs/gemma4_e2b_lora_mtnt.py \
    --cfg.workdir=/tmp/gemma4_e2b_lora_mtnt
```

With `--cfg.__args__.tiny=True` it is a tiny model on made-up data, anywhere.

Against a LoRA config for Gemma 3, these lines differ: `model`,
`init_transform`, and the task and tokenizer of the datasets. Loss, `trainstep`
and the model's last three arguments are there for memory and time.

The weights come from Google's public bucket, the data from TFDS. BLEU needs
`gemma4_lora[eval]`. For other hardware, override
`--cfg.train_ds.batch_size=...`.

| machine | batch | memory | time | eval loss |
|---|---|---|---|---|
| TPU v6e, 1 chip | 16 x 512 | 13.03 GiB, by the planner | not measured | not measured |
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

_KEYS = dict(head="preds.head", labels="batch.target", mask="batch.loss_mask")

ConfigArgs = tiny.ConfigArgs


def get_config(args: ConfigArgs = ConfigArgs()):
  cfg = kd.train.Trainer(
      seed=42,
      # Data
      train_ds=_make_dataset(split="train", batch_size=16),
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
          wrapped=gm.ckpts.LoadCheckpoint(
              path=gm.ckpts.CheckpointPath.GEMMA4_E2B_IT,
          ),
      ),
      # Training
      trainstep=g4.train.TrainStep(),
      num_train_steps=10_000,
      train_losses={
          "xentropy": g4.losses.SoftmaxCrossEntropyWithIntLabels(**_KEYS),
      },
      optimizer=kd.optim.partial_updates(
          optax.adamw(learning_rate=1e-4),
          mask=kd.optim.select("lora"),
      ),
      checkpointer=g4.ckpts.LoRACheckpointer(save_interval_steps=500),
      writer=g4.train.TerminalWriter(),
      # Evaluation
      evals={
          # With LoRA on; with LoRA off in `eval_base` and `sampling_base`.
          "eval": g4.evals.Evaluator(
              run=kd.evals.EveryNSteps(n=1000),
              ds=_make_dataset(split="test", batch_size=16),
              metrics={
                  "perplexity": g4.losses.Perplexity(**_KEYS),
                  "accuracy": g4.losses.Accuracy(**_KEYS),
              },
          ),
          "sampling": g4.evals.SamplerEvaluator(
              run=kd.evals.EveryNSteps(n=1000),
              ds=_make_dataset(split="test", batch_size=16, sampling=True),
              num_batches=20,
              metrics={"bleu": g4.evals.Bleu()},
              max_new_tokens=150,
              # Prompts of other lengths would compile again.
              pad_length=512,
              cache_length=1024,
          ),
      },
  )
  return tiny.shrink(cfg) if args.tiny else cfg


def _make_dataset(
    *, split: str, batch_size: int | None = None, sampling: bool = False
):
  tokenizer = gm.text.Gemma4Tokenizer()
  max_length = 512  # In tokens.
  return kd.data.py.Tfds(
      name="mtnt/en-fr",  # Fields: https://tensorflow.org/datasets/catalog/mtnt
      split=split,
      shuffle=split == "train",
      num_epochs=None if split == "train" else 1,
      batch_size=batch_size,
      num_workers=4,
      transforms=[
          g4.data.DropLongPrompts(
              in_prompt="src", tokenizer=tokenizer, max_length=max_length
          ),
          g4.data.ChatTask(
              in_prompt="src",
              in_response="dst",
              tokenizer=tokenizer,
              max_length=max_length,
              truncate=True,
              sampling=sampling,
          ),
      ],
  )
