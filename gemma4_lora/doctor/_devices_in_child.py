"""Asks jax for its devices in another process: jax may crash or hang."""

import json
import os
import subprocess
import sys

from gemma4_lora.doctor import _finding

_CODE = """
import json, jax
devices = jax.devices()
print(json.dumps([devices[0].platform, devices[0].device_kind, len(devices)]))
"""


def check(
    *, expected: str, timeout_s: float = 120, code: str = _CODE
) -> _finding.Finding:
  """Returns jax's devices.

  Args:
    expected: `'gpu'`, `'tpu'` or `'cpu'`: what this machine has a plugin and
      hardware for.
    timeout_s: How long jax may take to find them.
    code: What the process runs.
  """
  try:
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
  except subprocess.TimeoutExpired:
    return _finding.Finding(
        subject='devices',
        says=f'jax found none in {timeout_s:.0f} s',
        fix='Does another process hold them? End it, and ask again',
    )
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ['no message'])[-1]
    return _finding.Finding(
        subject='devices',
        says=f'jax does not start: {last}',
        fix='Put right what is WRONG above, or type: pip install -U'
        ' --force-reinstall jax jaxlib',
    )
  platform, kind, number = json.loads(done.stdout.strip().splitlines()[-1])
  says = f'{number} x {kind} ({platform})'
  if platform == 'cpu' and expected != 'cpu':
    forced = os.environ.get('JAX_PLATFORMS')
    extra = {'gpu': 'cuda13 (or cuda12)', 'tpu': 'tpu'}[expected]
    return _finding.Finding(
        subject='devices',
        says=f'{says}, though this machine has a {expected.upper()}',
        fix=f'Type: unset JAX_PLATFORMS (it is {forced!r})'
        if forced
        else f'Type: pip install -U "gemma4_lora[{extra}]", and restart Python',
    )
  return _finding.Finding(subject='devices', says=says)


def hardware() -> str:
  """Returns what is attached, by the files that its driver makes."""
  if os.path.exists('/dev/nvidiactl'):
    return 'gpu'
  if any(os.path.exists(path) for path in ('/dev/accel0', '/dev/vfio/0')):
    return 'tpu'
  return 'cpu'
