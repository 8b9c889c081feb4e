"""Initialises `jax.distributed` if the environment has several hosts."""

from collections.abc import Mapping
import json
import os
import re
import sys
from typing import Any

from absl import logging
import jax

_COORDINATOR = 'JAX_COORDINATOR_ADDRESS'
_EXPLICIT = (_COORDINATOR, 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
# Variables that jax reads itself.
_TPU_HOSTS = (
    'TPU_PROCESS_ADDRESSES_PATH',
    'TPU_PROCESS_ADDRESSES',
    'TPU_WORKER_HOSTNAMES',
)
# https://cloud.google.com/vertex-ai/docs/training/distributed-training
_CLUSTER_SPEC = 'CLUSTER_SPEC'
# Seconds after which a silent host counts as gone.
_TIMEOUT = 'GEMMA4_LORA_HEARTBEAT_TIMEOUT'
# What jax prints before it aborts, once it knows that a host is gone
# (`xla/pjrt/distributed/client.h`). It takes a callback for that, which cannot be
# in Python: it is given a C++ status, and ends in std::bad_cast (jaxlib 0.12.0).
FATAL = b'the JAX distributed service detected fatal errors'
LOST = 76
_LOST_TEXT = re.compile(
    r'Gloo|[Cc]onnection (closed|reset)|Socket closed|UNAVAILABLE|heartbeat'
)


def initialize() -> bool:
  """Joins the other processes of a run, before anything asks for a device.

  Kauldron's command leaves it to others, and it cannot be done after it has
  started: it looks at jax's devices first of all. Looked for, in this order:

  | environment | set by |
  |---|---|
  | `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID` | you |
  | `TPU_WORKER_HOSTNAMES` of several hosts, `TPU_WORKER_ID` | GKE, Vertex AI |
  | `CLUSTER_SPEC` of several workers | Vertex AI, for pools of machines |
  | the metadata of a TPU VM | Cloud TPU |

  `GEMMA4_LORA_HEARTBEAT_TIMEOUT` is in seconds: a host from which nothing is heard
  for so long is gone, and the others end. Default: jax's, 100.

  Returns:
    Whether there are several hosts.

  Raises:
    ValueError: The environment contradicts itself.
  """
  arguments = _explicit(os.environ)
  if arguments is None and _is_tpu_slice(os.environ):
    return _by_jax()
  if arguments is None:
    arguments = _of_cluster(os.environ.get(_CLUSTER_SPEC))
  if arguments is None:
    return _of_tpu_vm()
  if arguments['num_processes'] == 1:
    return False
  jax.distributed.initialize(**arguments, **_timeout())
  _log()
  return True


def may_have_several() -> bool:
  """Whether `initialize` may join others; if not, it prints why."""
  env = os.environ
  try:
    arguments = _explicit(env) or _of_cluster(env.get(_CLUSTER_SPEC))
  except ValueError:
    return False
  if arguments is not None:
    return arguments['num_processes'] > 1
  # In a terminal it is one host: several hosts have no terminal.
  return _is_tpu_slice(env) or _is_tpu_vm(env) and not sys.stderr.isatty()


def explain_lost(dump: str) -> str:
  """Returns the message about a host that is gone.

  Args:
    dump: What jax prints when it knows, or the error of a step.
  """
  found = re.search(r'[Tt]ask (\d+) heartbeat|heartbeats\):\s*(\d+)', dump)
  which = 'another host'
  if found:
    which = f'host {found[1] or found[2]}'
  elif 'PollForError' in dump:
    which = 'host 0, which coordinates,'
  return (
      f'{which} is gone: this one ends, too. The same command on all hosts goes'
      f' on from the last checkpoint. A host is gone if its process has ended,'
      f' or was not heard of for {_TIMEOUT} seconds (100 if that is not set).'
  )


def is_lost(error: BaseException) -> bool:
  """Whether an error of a step is that another host is gone."""
  is_jax = isinstance(error, jax.errors.JaxRuntimeError)
  return is_jax and bool(_LOST_TEXT.search(str(error)))


def _timeout() -> dict[str, Any]:
  """Returns arguments of `jax.distributed.initialize`."""
  value = os.environ.get(_TIMEOUT)
  if not value:
    return {}
  seconds = _integer(_TIMEOUT, value)
  if seconds < 1:
    raise ValueError(f'{_TIMEOUT}={value} takes seconds, at least 1.')
  return {'heartbeat_timeout_seconds': seconds}


def _explicit(env: Mapping[str, str]) -> dict[str, Any] | None:
  given = {name: env[name] for name in _EXPLICIT if env.get(name)}
  if not given:
    return None
  missing = [name for name in _EXPLICIT if name not in given]
  if missing:
    raise ValueError(
        f'For several hosts, {", ".join(given)} is set, but not'
        f' {", ".join(missing)}. Set all of {", ".join(_EXPLICIT)}, or none.'
    )
  number, index = (_integer(name, given[name]) for name in _EXPLICIT[1:])
  if not 0 <= index < number:
    raise ValueError(
        f'JAX_PROCESS_ID={index} is not one of JAX_NUM_PROCESSES={number}: they'
        f' are 0 to {number - 1}.'
    )
  if ':' not in given[_COORDINATOR]:
    raise ValueError(
        f'{_COORDINATOR}={given[_COORDINATOR]} lacks a port, as in host:8482.'
    )
  return {
      'coordinator_address': given[_COORDINATOR],
      'num_processes': number,
      'process_id': index,
  }


def _integer(name: str, value: str) -> int:
  try:
    return int(value)
  except ValueError as e:
    raise ValueError(f'{name}={value} is not a number.') from e


def _is_tpu_slice(env: Mapping[str, str]) -> bool:
  """Whether the hosts of a slice are listed, and they are several."""
  hosts = next((env[name] for name in _TPU_HOSTS if env.get(name)), '')
  # The first of the variables names a file with the list in it.
  return ',' in hosts or bool(env.get(_TPU_HOSTS[0]))


def _by_jax() -> bool:
  timeout = _timeout()
  try:
    jax.distributed.initialize(**timeout)
  except ValueError as e:
    raise ValueError(
        'The environment lists several hosts of a TPU slice'
        f' ({" or ".join(_TPU_HOSTS)}), but jax finds no TPU on this one. Is'
        ' libtpu installed (pip install "gemma4_lora[tpu]")? jax says:'
        f' {e}'
    ) from e
  _log()
  return jax.process_count() > 1


def _of_cluster(text: str | None) -> dict[str, Any] | None:
  """Reads Vertex's list of the workers of all its pools."""
  if not text:
    return None
  try:
    spec = json.loads(text)
    pools = sorted(spec['cluster'].items())
    workers = [(k, i) for k, pool in pools for i in range(len(pool))]
    process = workers.index((spec['task']['type'], int(spec['task']['index'])))
    first = pools[0][1][0]
  except (ValueError, LookupError, TypeError, AttributeError) as e:
    raise ValueError(
        f'{_CLUSTER_SPEC} is not what Vertex AI sets ({e!r}): {text}'
    ) from e
  if len(workers) == 1:
    return None
  return {
      'coordinator_address': first,
      'num_processes': len(workers),
      'process_id': process,
  }


def _of_tpu_vm() -> bool:
  """Asks the metadata of a TPU VM, if this is one."""
  if not _is_tpu_vm(os.environ):
    return False
  timeout = _timeout()
  try:
    jax.distributed.initialize(**timeout)
  except (ValueError, RuntimeError, OSError) as e:
    # A TPU of a notebook, say. Hosts of a slice would wait for each other.
    logging.warning('gemma4_lora: this TPU is taken for a single host: %s', e)
    return False
  _log()
  return jax.process_count() > 1


def _is_tpu_vm(env: Mapping[str, str]) -> bool:
  """Whether there is a TPU, and no environment that says it is one host's."""
  if not any(os.path.exists(path) for path in ('/dev/accel0', '/dev/vfio/0')):
    return False
  return not env.get('TPU_SKIP_MDS_QUERY') and not any(map(env.get, _TPU_HOSTS))


def _log() -> None:
  logging.info(
      'gemma4_lora: process %d of %d', jax.process_index(), jax.process_count()
  )
