r"""DPO of Gemma 4 E2B with LoRA, on pairs of answers to questions of maths.

```sh
python -m kauldron.main --cfg=configs/gemma4_e2b_dpo.py \
    --cfg.workdir=/tmp/gemma4_e2b_dpo
```

With `--cfg.__args__.tiny=True` it is a tiny model on made-up data, anywhere.

The reference is the same model with LoRA off: no second copy of the base, one
more forward pass.

The weights come from Google's public bucket, the data from Hugging Face (`pip
install datasets`). For other hardware, override `--cfg.train_ds.batch_size=...`:
the batch has two rows for each pair.

Memory: 14.14 of 31.24 GiB of a chip at 8 x 2 x 512, by the planner

| machine | batch | memory | time | accuracy |
|---|---|---|---|---|
| TPU v6e, 1 chip | 8 x 2 x 512 | 14.14 GiB | not measured | not measured |
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

_KEYS = dict(
    head="preds.head",
    reference="preds.reference.head",
    tokens="batch.target",
    sequence_mask="batch.loss_mask",
)
_MAX_LENGTH = 512  # In tokens.


def get_config(args: ConfigArgs = ConfigArgs()):
  cfg = kd.train.Trainer(
      seed=42,
      # Data
      train_ds=_make_dataset(
          g4.data.PreferenceTask(
              in_prompt="instruction",
              in_chosen="chosen_response",
              in_rejected="rejected_response",
              tokenizer=gm.text.Gemma4Tokenizer(),
              max_length=_MAX_LENGTH,
              truncate=True,
              max_malformed=0.05,
          ),
          split="train[:90%]",
          shuffle=True,
          batch_size=8,
      ),
      # Model
      model=g4.nn.LoRA(
          rank=16,
          alpha=32,
          model=gm.nn.Gemma4_E2B(tokens="batch.input"),
          with_reference=True,
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
      num_train_steps=1_000,
      train_losses={"dpo": g4.losses.DpoLoss(**_KEYS, tau=0.1)},
      train_metrics={"accuracy": g4.losses.DpoAccuracy(**_KEYS)},
      optimizer=kd.optim.partial_updates(
          optax.adamw(learning_rate=5e-6),
          mask=kd.optim.select("lora"),
      ),
      checkpointer=g4.ckpts.LoRACheckpointer(save_interval_steps=100),
      writer=g4.train.TerminalWriter(),
      # Evaluation
      evals={
          # Answers with LoRA on; with LoRA off in `sampling_base`.
          "sampling": g4.evals.SamplerEvaluator(
              run=kd.evals.EveryNSteps(n=200),
              ds=_make_dataset(
                  g4.data.ChatTask(
                      in_prompt="instruction",
                      in_response="chosen_response",
                      tokenizer=gm.text.Gemma4Tokenizer(),
                      sampling=True,
                  ),
                  split="train[90%:]",
                  shuffle=False,
              ),
              num_batches=5,
              max_new_tokens=300,
              # Prompts of other lengths would compile again.
              pad_length=512,
              cache_length=1024,
          ),
      },
  )
  return tiny.shrink(cfg) if args.tiny else cfg


def _make_dataset(
    task, *, split: str, shuffle: bool, batch_size: int | None = None
):
  return kd.data.py.HuggingFace(
      path="argilla/distilabel-math-preference-dpo",
      split=split,
      shuffle=shuffle,
      num_epochs=None if shuffle else 1,
      batch_size=batch_size,
      num_workers=4,
      transforms=[
          kd.data.Elements(
              keep=["instruction", "chosen_response", "rejected_response"]
          ),
          task,
          # Of a task that samples, its answers alone are left.
          kd.data.Elements(
              drop=["rejected_response"] if batch_size is None else []
          ),
      ],
  )
