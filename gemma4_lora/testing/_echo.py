"""A tiny pretrained checkpoint, made on first use."""

import dataclasses
import functools
import hashlib
import os
import time
from typing import Any

from etils import epath
import jax
from jax import numpy as jnp
import numpy as np
import optax

from gemma4_lora import data
from gemma4_lora import host
from gemma4_lora.testing import _checkpoints
from gemma4_lora.testing import _models
from gemma4_lora.testing import _pairs
from gemma4_lora.testing import _tokenizer

_BATCH_SIZE = 32
_LEARNING_RATE = 1e-2
_MAX_LENGTH = 48  # The longest chat of the pairs has 44 tokens.


@dataclasses.dataclass(frozen=True, kw_only=True)
class EchoCheckpoint(os.PathLike):
  """Path of a checkpoint of the tiny E2B that repeats what the user says.

  It stands in for an instruction-tuned checkpoint where none can be
  downloaded: `g4.testing.Gemma4_E2B`, with all its parameters trained on chats
  in which user and model say the same sentence, English or French. It knows
  the sentences of both languages and Gemma 4's turns, and no translation.

  ```python
  gm.ckpts.LoadCheckpoint(path=g4.testing.EchoCheckpoint())
  ```

  The first code that opens the path trains it, in less than a minute on two
  cores, and writes it in the released (nested) layout. The training is
  deterministic. The checkpoint's name has a digest of all that it depends on,
  and what is there is never overwritten.

  Attributes:
    steps: Number of training steps, of 32 chats each.
    folder: Where to keep the checkpoint.
  """

  steps: int = 300
  folder: epath.PathLike = "~/.cache/gemma4_lora"

  def __post_init__(self):
    if self.steps < 1:
      raise ValueError(f"EchoCheckpoint: steps={self.steps} must be positive.")

  def __fspath__(self) -> str:
    path = self.path
    if not path.exists():
      self._make(path)
    return os.fspath(path)

  @property
  def path(self) -> epath.Path:
    """Where the checkpoint is, or will be."""
    folder = host.path(self.folder, who="EchoCheckpoint").expanduser()
    return folder / f"echo_e2b_{self._digest}"

  @functools.cached_property
  def _digest(self) -> str:
    settings = (
        self.steps,
        _BATCH_SIZE,
        _LEARNING_RATE,
        _MAX_LENGTH,
        _model().config,
    )
    digest = hashlib.sha256(repr(settings).encode())
    digest.update(_pairs.PAIRS_PATH.read_bytes())
    digest.update(_tokenizer.MODEL_PATH.read_bytes())
    return digest.hexdigest()[:12]

  def _make(self, path: epath.Path) -> None:
    start = time.monotonic()
    print(f"First use: training a tiny checkpoint for {path} ...", flush=True)
    params = _train(self.steps)
    try:
      # It becomes visible as a whole, or not at all.
      _checkpoints.make_checkpoint(_model(), path, params=params)
    except OSError:
      if not path.exists():  # If it fails, another process was first.
        raise
    print(f"... done in {time.monotonic() - start:.0f} s.", flush=True)


def _model(**kwargs: Any) -> Any:
  return _models.MODELS["Gemma4_E2B"](tokens="batch.input", **kwargs)


def _train(steps: int) -> Any:
  """Returns parameters that repeat, in the dtypes of the model."""
  shapes = _checkpoints.abstract_params(_model())
  # Trained in float32: bfloat16 loses small updates.
  model = _model(dtype=jnp.float32)
  params = _checkpoints.random_params(_checkpoints.abstract_params(model))
  optimizer = optax.adamw(
      optax.warmup_cosine_decay_schedule(
          0.0,
          peak_value=_LEARNING_RATE,
          warmup_steps=20,
          decay_steps=max(steps, 21),
          end_value=0.1 * _LEARNING_RATE,
      )
  )

  def loss_fn(params, batch):
    logits = model.apply({"params": params}, batch["input"]).logits
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, batch["target"][..., 0]
    )
    mask = batch["loss_mask"][..., 0]
    return jnp.sum(losses * mask) / jnp.sum(mask)

  @jax.jit
  def step_fn(params, state, batch):
    updates, state = optimizer.update(
        jax.grad(loss_fn)(params, batch), state, params
    )
    return optax.apply_updates(params, updates), state

  examples = _echoes()
  rng = np.random.default_rng(0)
  state = optimizer.init(params)
  for _ in range(steps):
    rows = rng.choice(len(examples["input"]), _BATCH_SIZE, replace=False)
    batch = {k: v[rows] for k, v in examples.items()}
    params, state = step_fn(params, state, batch)
  return jax.tree.map(lambda x, s: np.asarray(x, s.dtype), params, shapes)


def _echoes() -> dict[str, np.ndarray]:
  """Returns all sentences that are trained on, said and said again."""
  task = data.ChatTask(
      in_prompt="text",
      in_response="text",
      tokenizer=_tokenizer.Gemma4Tokenizer(),
      max_length=_MAX_LENGTH,
  )
  examples = [
      task.map({"text": pair[language]})
      for pair in _pairs.EnFrPairs(split="train")
      for language in ("en", "fr")
  ]
  return jax.tree.map(lambda *rows: np.stack(rows), *examples)
