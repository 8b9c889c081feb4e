# /// script
# requires-python = ">=3.11"
# dependencies = ["mlx[cpu]==0.32.4", "mlx-lm==0.32.2", "numpy>=2"]
# ///
"""What mlx-lm answers, on a CPU: `serving_test` runs this."""

import json
import pathlib
import sys

import mlx.core as mx
import mlx_lm
import numpy as np


def main(cases: list, out: str) -> None:
  """Writes logits and tokens of each case: see `server_side.llama`."""
  answers = {}
  for i, case in enumerate(cases):
    model, _ = mlx_lm.load(case['folder'], adapter_path=case['adapter'])
    model.eval()
    tokens = list(case['tokens'])
    logits = step = np.asarray(model(mx.array([tokens])))[0]
    for _ in range(case['more']):
      tokens.append(int(step[-1].argmax()))
      step = np.asarray(model(mx.array([tokens])))[0]
    answers[f'{i}.logits'] = logits
    answers[f'{i}.tokens'] = np.asarray(tokens)
  np.savez(out, **answers)


if __name__ == '__main__':
  main(**json.loads(pathlib.Path(sys.argv[1]).read_text()))
