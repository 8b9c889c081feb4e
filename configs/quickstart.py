r"""Quickstart: a tiny Gemma 4 learns to translate, on a laptop.

```sh
python -m kauldron.main --cfg=configs/quickstart.py \
    --cfg.workdir=/tmp/gemma4_lora_quickstart
```

The base is a model with E2B's features and 0.2 M parameters that repeats what
it is told; LoRA teaches it to say it in French. All pieces but the model, its
checkpoint, its tokenizer and the sentences are those of a real run: compare
`gemma4_e2b_lora_mtnt.py`.

| machine | memory | time | eval loss before | after |
|---|---|---|---|---|
| 2 cores of an AMD EPYC | 2.4 GiB | 80 s, the first run | 3.90 | 0.21 |
"""

from kauldron import konfig

# pylint: disable=g-import-not-at-top
with konfig.imports():
  from gemma import gm
  from kauldron import kd
  import optax

  from gemma4_lora import g4
# pylint: enable=g-import-not-at-top


def get_config():
  return kd.train.Trainer(
      seed=42,
      # Data
      train_ds=_make_dataset(split="train", batch_size=32),
      # Model
      model=g4.nn.LoRA(
          rank=16,
          alpha=16,
          model=g4.testing.Gemma4_E2B(tokens="batch.input"),
          logits_in_training=False,
      ),
      # Weights. Made on first use, in the layout of the released checkpoints.
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=gm.ckpts.LoadCheckpoint(path=g4.testing.EchoCheckpoint()),
      ),
      # Training
      trainstep=g4.train.TrainStep(),
      num_train_steps=200,
      train_losses={
          "xentropy": g4.losses.SoftmaxCrossEntropyWithIntLabels(
              head="preds.head",
              labels="batch.target",
              mask="batch.loss_mask",
          ),
      },
      optimizer=kd.optim.partial_updates(
          optax.adamw(learning_rate=1e-2),
          mask=kd.optim.select("lora"),
      ),
      checkpointer=g4.ckpts.LoRACheckpointer(save_interval_steps=100),
      # What the terminal and TensorBoard show
      setup=g4.train.QuietSetup(),
      writer=g4.train.TerminalWriter(),
      log_metrics_every=50,
      log_summaries_every=50,
      # Evaluation
      evals={
          # Loss on sentences that are not trained on; with LoRA off, too.
          "eval": g4.evals.Evaluator(
              run=kd.evals.EveryNSteps(n=50),
              ds=_make_dataset(split="test", batch_size=40),
          ),
          # Translations of some of them, before, during and after.
          "sampling": gm.evals.SamplerEvaluator(
              run=kd.evals.EveryNSteps(n=100),
              ds=_make_dataset(split="test", sampling=True),
              num_batches=4,
              max_new_tokens=24,
              cache_length=64,
              pad_length=32,
          ),
      },
  )


def _make_dataset(
    *, split: str, batch_size: int | None = None, sampling: bool = False
):
  return kd.data.py.DataSource(
      data_source=g4.testing.EnFrPairs(split=split),
      shuffle=split == "train",
      num_epochs=None if split == "train" else 1,
      batch_size=batch_size,
      num_workers=0,
      transforms=[
          g4.data.ChatTask(
              in_prompt="en",
              in_response="fr",
              tokenizer=g4.testing.Gemma4Tokenizer(),
              max_length=48,
              sampling=sampling,
          ),
      ],
  )
