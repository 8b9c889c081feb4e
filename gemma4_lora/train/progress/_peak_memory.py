"""Peak memory of a run, and the memory of its devices."""

import sys

import jax

try:
  import resource  # Not on Windows.
except ImportError:
  resource = None

_GIB = 2**30


def peak_gib() -> float | None:
  """Returns the most memory that was in use at a time, in GiB.

  It is that of the fullest device of this host; on a CPU, of this process.
  """
  stats = _stats()
  if stats:
    return max(x.get('peak_bytes_in_use', 0) for x in stats) / _GIB
  if resource is None:
    return None
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak * (1 if sys.platform == 'darwin' else 1024) / _GIB


def in_use_gib() -> tuple[float, float] | None:
  """Returns used and total memory of the fullest device."""
  found = [
      (x['bytes_in_use'] / _GIB, x['bytes_limit'] / _GIB)
      for x in _stats()
      if x.get('bytes_limit')
  ]
  return max(found, default=None)


def _stats() -> list[dict[str, int]]:
  # CPU devices do not report it.
  return [x for d in jax.local_devices() if (x := d.memory_stats())]
