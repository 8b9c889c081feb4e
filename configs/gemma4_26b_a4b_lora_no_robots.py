r"""LoRA fine-tuning of Gemma 4 26B_A4B on conversations, on eight TPU chips.

```sh
python -m gemma4_lora train --cfg=configs/gemma4_26b_a4b_lora_no_robots.py \
    --cfg.workdir=gs://my-bucket/gemma4_26b_a4b_lora_no_robots
```

On one host, that is `python -m kauldron.main`. LoRA is on attention; with
`--cfg.__args__.experts=True` on the routed experts too, at a lower rank: there are
128 of them in each layer. With `--cfg.__args__.tiny=True` it is a tiny model on
made-up data, anywhere.

FSDP: each chip holds an eighth of the base, and of those of the experts' A and B
that are above 4 MB, and gathers a weight when it is its turn. The other A and B
are small and stand on all chips; Adam's moments, twice as large, do not.

The weights come from Google's public bucket, the data from Hugging Face (`pip
install datasets`). The batch must be a multiple of the number of chips.

Memory: 18.71 of 31.24 GiB of a chip at 8 x 2048, by the planner
Memory with experts: 20.83 of 31.24 GiB of a chip at 8 x 2048, by the planner

| machine | LoRA on | batch | memory | time | eval loss |
|---|---|---|---|---|---|
| TPU v6e, 8 chips (2x4) | attention | 8 x 2048 | 18.71 GiB | not measured | not measured |
| TPU v6e, 8 chips (2x4) | experts too | 8 x 2048 | 20.83 GiB | not measured | not measured |
"""

import dataclasses

from kauldron import konfig

from gemma4_lora import tiny

# pylint: disable=g-import-not-at-top
with konfig.imports():
  from gemma import gm
  from kauldron import kd
  import optax

  from gemma4_lora import g4
# pylint: enable=g-import-not-at-top


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigArgs(tiny.ConfigArgs):
  experts: bool = False


def get_config(args: ConfigArgs = ConfigArgs()):
  cfg = kd.train.Trainer(
      seed=42,
      # Data
      train_ds=_make_dataset(split="train"),
      # Model
      model=g4.nn.LoRA(
          rank=16,
          alpha=32,
          targets=["attention", g4.targets.experts(rank=4)]
          if args.experts
          else "attention",
          model=gm.nn.Gemma4_26B_A4B(tokens="batch.input"),
          # Memory
          logits_in_training=False,
          remat="attention",
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
      sharding=kd.sharding.ShardingStrategy(
          params=kd.sharding.FSDPSharding(),  # Leaves above 4 MB.
          # Left to the compiler, a resumed run would round otherwise.
          opt_state=kd.sharding.FSDPSharding(min_size_to_shard_mb=0),
      ),
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
      batch_size=8,
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
