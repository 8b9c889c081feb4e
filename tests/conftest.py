"""Settings of all tests."""

import gc
import os
import pathlib
import signal
import sys

import jax
import pytest

from tests.lib import caches

# `libtpu` is here for tests that compile for TPUs. Left to itself, jax would
# load it in every process, and look for a TPU.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
jax.config.update('jax_platforms', os.environ['JAX_PLATFORMS'])

# Most of the time goes into compiling programs that run once: let LLVM, which
# makes machine code of what XLA has optimised, not optimise it again. Level 0
# compiles in 50 to 65 % of level 1's time, which is half of that of XLA's own
# level, 3. It rounds otherwise, as sums are not vectorised; no bound was loosened
# for that. One module of LLVM per program, not several for threads: two workers
# have no cores to spare.
os.environ['XLA_FLAGS'] = ' '.join(
    [
        '--xla_backend_optimization_level=0',
        '--xla_llvm_disable_expensive_passes=true',
        '--xla_cpu_parallel_codegen_split_count=1',
        os.environ.get('XLA_FLAGS', ''),
    ]
)

# Where in Python each operation was made goes into programs, but no test reads it:
# to look for it takes a sixth of the time of tracing.
os.environ['JAX_TRACEBACK_IN_LOCATIONS_LIMIT'] = '0'
jax.config.update('jax_traceback_in_locations_limit', 0)

# Before any test makes an array: eight devices, as on one TPU host, so that
# what is sharded in earnest is sharded in tests.
jax.config.update('jax_num_cpu_devices', 8)

# Tests compile the same tiny models again and again, in every run. Programs stay
# in the user's cache folder, by version: `~/.cache/gemma4_lora/tests`, or the
# folder that GEMMA4_LORA_TEST_CACHE names. If that variable is empty, they go
# when the run ends. By variables, as child processes compile the same models.
_CACHE = caches.folder()
caches.keep_bytecode(_CACHE / 'bytecode')
os.environ['JAX_COMPILATION_CACHE_DIR'] = os.fspath(_CACHE / 'programs')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
jax.config.update(
    'jax_compilation_cache_dir', os.environ['JAX_COMPILATION_CACHE_DIR']
)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


# Shells let jobs in the background ignore SIGINT, and what those start does, too:
# here tests send it to processes that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

# Fixtures of several folders.
pytest_plugins = [
    'tests.lib.buckets',
    'tests.lib.checkpoints',
    'tests.lib.commands',
]


# Files that take longest: a worker that started one last would be alone with it.
_LONGEST = (
    'colabs_test.py',
    'configs_test.py',
    'towers_test.py',
    'splash_test.py',
    'step_test.py',
    'dora_test.py',
    'train_test.py',
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Puts them first; the others stay in their order."""
  ranks = {name: i - len(_LONGEST) for i, name in enumerate(_LONGEST)}
  items.sort(key=lambda item: ranks.get(item.path.name, 0))


def pytest_collection_finish() -> None:
  """Prepares the process that runs tests, which has imported them all."""
  # Spares the garbage collector what was imported: millions of objects.
  gc.collect()
  gc.freeze()
  gc.set_threshold(100_000)
  # Where each device has all of an array, Orbax lets each write a part of it, and
  # compiles a program for each part of each shape: hundreds for a tiny model.
  # Only large arrays, then. Not at the top: the process that hands out tests
  # need not import Orbax.
  from orbax import checkpoint as ocp

  handler = ocp.type_handlers.get_type_handler(jax.Array)
  handler._min_slice_bytes_for_replica_parallel = 2**12


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
  """Ends the run if a worker dies: xdist 3.8, which starts another, then hangs."""
  if hasattr(config.option, 'maxworkerrestart'):
    config.option.maxworkerrestart = '0'


@pytest.hookimpl(optionalhook=True)  # Without xdist there is no such hook.
def pytest_xdist_make_scheduler(config, log):
  """Gives each file to one worker: its tests share models and programs."""
  from xdist import scheduler

  config.option.loadscopereorder = False  # Not by their number of tests.
  return scheduler.LoadFileScheduling(config, log)


@pytest.fixture(autouse=True)
def _forget_config():
  """The flag `--cfg` runs a config's file in the module of the one before."""
  sys.modules.pop('cfg_config', None)


@pytest.fixture(autouse=True)
def _keep_memory(monkeypatch):
  """Models of a few kB give nothing back to the system.

  To look for garbage, and for freed pages, among all that a thousand tests
  have left takes longer than what a test does.
  """
  # Not above: the process that hands out tests need not import NumPy.
  from gemma4_lora.host import _memory

  monkeypatch.setattr(_memory, 'give_back', lambda: None)


_MAPS = pathlib.Path('/proc/self/maps')


@pytest.fixture(scope='module', autouse=True)
def _drop_compiled_programs():
  """Frees what tests compiled, before there is too much of it.

  XLA maps each compiled program into memory, in several pieces: one module of
  tests has made up to 11,000. Kept to the end of the suite they pass Linux's
  limit of mappings per process (65,530), and the process dies in whichever test
  compiles next.
  """
  yield
  if _MAPS.exists() and len(_MAPS.read_text().splitlines()) > 30_000:
    jax.clear_caches()
    gc.collect()
