"""The same training by transformers and PEFT, in an environment of their own.

Answers as `tests/benchmarks/worker.py` does, and imports nothing of ours but
that file and `sizes.py`, which import nothing else.
"""

import argparse
import pathlib
import sys
import time
from typing import Any

import peft
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from tests.benchmarks import sizes  # pylint: disable=g-import-not-at-top
from tests.benchmarks import worker  # pylint: disable=g-import-not-at-top

_LINEARS = [
    *('q_proj', 'k_proj', 'v_proj', 'o_proj'),
    *('gate_proj', 'up_proj', 'down_proj'),
    *('per_layer_input_gate', 'per_layer_projection'),
    'per_layer_model_projection',
]


class Functions:
  """What it can be asked."""

  def __init__(self, size: sizes.Size):
    self._size = size

  def begin(self) -> dict[str, Any]:
    """Makes the model, and takes the first step."""
    torch.manual_seed(0)
    self._train(transformers.Gemma4ForCausalLM(_config(self._size)))
    before = worker.memory_mb()['now']
    worker.forget_peak()
    loss = self.run(1)['loss']
    peak = worker.memory_mb()['peak']
    return {'loss': loss, 'temporaries_mb': peak - before}

  def _train(self, base: Any) -> None:
    config = peft.LoraConfig(
        r=self._size.rank, target_modules=_LINEARS, task_type='CAUSAL_LM'
    )
    dtype = getattr(torch, self._size.dtype)
    self._model = peft.get_peft_model(base.to(dtype), config).train()
    trained = [x for x in self._model.parameters() if x.requires_grad]
    self._optimizer = torch.optim.Adam(trained, lr=1e-3)
    shape = (self._size.batch, self._size.length)
    self._tokens = torch.randint(3, self._size.vocabulary, shape)

  def run(self, num: int) -> dict[str, float]:
    """Takes steps."""
    start = time.monotonic()
    for _ in range(num):
      self._optimizer.zero_grad()
      loss = self._model(input_ids=self._tokens, labels=self._tokens).loss
      loss.backward()
      self._optimizer.step()
    return {'seconds': time.monotonic() - start, 'loss': loss.item()}

  def write(self, folder: str) -> dict[str, Any]:
    """Writes a base."""
    model = transformers.Gemma4ForCausalLM(_config(self._size))
    model.to(getattr(torch, self._size.dtype)).save_pretrained(folder)
    return {}

  def start(self, released: str, workdir: str) -> dict[str, float]:
    """Restores, and saves: LoRA and the optimizer's state."""
    before = worker.memory_mb()['now']
    worker.forget_peak()
    start = time.monotonic()
    self._train(
        transformers.Gemma4ForCausalLM.from_pretrained(
            released, dtype=getattr(torch, self._size.dtype)
        )
    )
    restored = time.monotonic()
    peak = worker.memory_mb()['peak'] - before
    self.run(1)  # Adam's state is made in the first step.
    saving = time.monotonic()
    self._model.save_pretrained(workdir, save_embedding_layers=False)
    path = pathlib.Path(workdir, 'optimizer.pt')
    torch.save(self._optimizer.state_dict(), path)
    return {
        'restore_s': restored - start,
        'restore_peak_mb': peak,
        'save_s': time.monotonic() - saving,
        'checkpoint_mb': worker.size_mb(workdir),
    }


def _config(size: sizes.Size) -> Any:
  """The size in the terms of transformers."""
  kinds = {True: 'full_attention', False: 'sliding_attention'}
  digits = len(str(size.num_layers - 1))
  return transformers.Gemma4TextConfig(
      vocab_size=size.vocabulary,
      vocab_size_per_layer_input=size.vocabulary,
      hidden_size=size.width,
      hidden_size_per_layer_input=size.per_layer_dim,
      intermediate_size=4 * size.width,
      use_double_wide_mlp=True,
      num_hidden_layers=size.num_layers,
      num_kv_shared_layers=size.num_shared,
      num_attention_heads=size.num_heads,
      num_key_value_heads=1,
      head_dim=size.head_dim,
      layer_types=[kinds[x] for x in size.is_global],
      per_layer_config={
          f'{i:0{digits}}': {'head_dim': 2 * size.head_dim}
          for i, x in enumerate(size.is_global)
          if x
      },
      sliding_window=size.window,
      final_logit_softcapping=30.0,
      attention_k_eq_v=False,
      enable_moe_block=False,
      tie_word_embeddings=True,
  )


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('size')
  worker.answer(Functions(sizes.from_json(parser.parse_args().size)))
