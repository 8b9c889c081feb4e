"""The public face."""

import json
import subprocess
import sys

from kauldron import konfig
import pytest


def test_importing_g4_imports_no_jax():
  """Configs import it before the flags of jax are parsed."""
  code = (
      'import sys; from gemma4_lora import g4;'
      ' assert "jax" not in sys.modules, "jax";'
      ' assert "gemma" not in sys.modules, "gemma"'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('override', [{}, {'rank': 3, 'targets': ['q', 'v']}])
def test_a_config_survives_json(override):
  """Saved with every run, under the public path."""
  with konfig.imports():
    from gemma4_lora import g4

  cfg = konfig.ConfigDict(
      {
          'model': g4.nn.LoRA(
              rank=2,
              alpha=4.0,
              targets=['attention'],
              model=g4.testing.Gemma4_E2B(tokens='batch.input'),
          )
      }
  )
  cfg.model.update(override)
  text = cfg.to_json()
  assert '"gemma4_lora.g4:nn.LoRA"' in text
  again = konfig.ConfigDict(json.loads(text))
  assert konfig.resolve(again).model == konfig.resolve(cfg).model
  assert konfig.resolve(again).model.rank == override.get('rank', 2)
