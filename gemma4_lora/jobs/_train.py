"""`python -m gemma4_lora train`: Kauldron's command, on one host or several."""

from collections.abc import Callable
from collections.abc import Sequence
import os
import re
import sys
import threading
import time
from typing import Any
from typing import NoReturn
import warnings

from absl import app
from absl import flags
from absl import logging
from etils import epath
import jax
from kauldron import konfig

from gemma4_lora import host
from gemma4_lora.data import _ended
from gemma4_lora.host import _live_owner
from gemma4_lora.host import _paths
from gemma4_lora.host import _stop_signals
from gemma4_lora.host import _storage_errors
from gemma4_lora.host import _watched
from gemma4_lora.host.folders import _in_the_way
from gemma4_lora.jobs import _distributed
from gemma4_lora.jobs.command_line import _arguments
from gemma4_lora.jobs.command_line import _booleans
from gemma4_lora.jobs.command_line import _config
from gemma4_lora.jobs.command_line import _config_file
from gemma4_lora.jobs.command_line import _gemmas_loaders
from gemma4_lora.jobs.command_line import _overrides

_WATCH_SECONDS, _AGAIN_SECONDS = 1.0, 2 * _live_owner.BEAT_SECONDS
_CLASS = '__qualname__'  # Where `konfig` keeps it.
_KAULDRONS = 'kauldron.kd:ckpts.Checkpointer'
_OURS = 'gemma4_lora.g4:ckpts.Checkpointer'
_TRAINER = 'kauldron.kd:train.Trainer'
_WRITER = 'kauldron.kd:train.KDMetricWriter'
_OUR_WRITER = 'gemma4_lora.g4:train.TerminalWriter'


def run(
    argv: Sequence[str],
    *,
    saved: Callable[[], str | None] = lambda: None,
    silence: Callable[[], str | None] = lambda: None,
) -> None:
  """Joins the other hosts, if there are any, and is Kauldron's main from there.

  | exit status | when |
  |---|---|
  | 0 | The run is complete. |
  | 75 | SIGTERM or SIGINT: all is saved, and the same command goes on. |
  | 76 | Another host is gone. |
  | 130 | A second SIGINT: the run goes on from the step before. |
  | 1 | An error. |

  Args:
    argv: Kauldron's flags: `--cfg=...`, `--cfg.workdir=...`, `--eval_names=...`;
      `--workdir=...` is `--cfg.workdir=...`.
    saved: Says what the run has saved, for errors of a bucket.
    silence: Says that the bucket does not answer, for how long the run waits.
  """
  try:
    argv = _overrides.for_kauldron(argv)
    if _distributed.may_have_several():
      _watched.watch(
          _distributed.FATAL,
          _distributed.explain_lost,
          status=_distributed.LOST,
      )
    several_hosts = _distributed.initialize()
  except ValueError as e:
    _arguments.end(str(e))
  _stop_signals.of_process().install(several_hosts=several_hosts)
  # Looks at jax's devices when it is imported: too late to join anyone.
  from kauldron import main  # pylint: disable=g-import-not-at-top

  def checked_main(rest: Sequence[str]) -> Any:
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)
    try:
      if rest[1:]:
        raise ValueError(f'train takes flags alone. Got: {rest[1:]}.')
      _prepare(
          flags.FLAGS['cfg'],
          trains=flags.FLAGS['eval_names'].value is None,
      )
    except (ValueError, ModuleNotFoundError, OSError) as e:
      _arguments.end(str(e))
    _stop_signals.of_process().check()
    _watch(silence)
    try:
      return main.main(rest)
    except Exception as e:  # pylint: disable=broad-exception-caught
      if line := _line(e, saved):
        _arguments.end(line)
      if not several_hosts or not _distributed.is_lost(e):
        raise
      _end_at_once(_distributed.explain_lost(str(e)), _distributed.LOST)

  jax.config.config_with_absl()
  # Where the flag of the config looks for what changes it.
  sys.argv[1:] = argv
  # The module stays that of this command: worker processes of the data import
  # it anew, and Kauldron's would look for devices in each.
  app.run(checked_main, argv=sys.argv, flags_parser=_parse)


def _watch(silence: Callable[[], str | None]) -> None:
  """Ends the process with a line, once the run waits for a silent bucket.

  TensorFlow and Orbax try again for longer than anybody would wait; nothing
  stops them but the end of the process.
  """

  def keep_watching():
    while True:
      time.sleep(_WATCH_SECONDS)
      if silence():
        # This process may have been suspended: time to ask the bucket again.
        time.sleep(_AGAIN_SECONDS)
        if line := silence():
          _end_at_once(line)

  threading.Thread(target=keep_watching, daemon=True, name='g4-watch').start()


def _end_at_once(line: str, status: int = 1) -> NoReturn:
  """Ends the process, and with it what hangs: Python's own end waits for it."""
  # Behind what a progress bar has left there.
  print(f'\ngemma4_lora: {line}', file=sys.stderr)
  sys.stderr.flush()
  os._exit(status)


def _parse(argv: Sequence[str]) -> list[str]:
  """Is `_arguments.parse`; says which field of the config may be meant."""
  try:
    return _arguments.read(argv, flags.FLAGS)
  except _config_file.ConfigError as e:
    unknown = re.match(r"Unknown command line flag '(\w+)'", str(e))
    path = _arguments.given(argv)
    fields = _config.fields_named(path, unknown[1]) if unknown and path else []
    hint = ' or '.join(f'--cfg.{x}' for x in fields[:3])
    _arguments.end(f'{e}. Did you mean {hint}?' if hint else str(e))


def _line(
    e: Exception, saved: Callable[[], str | None] = lambda: None
) -> str | None:
  """Returns the line for an error that a user can fix, or None."""
  # That of `jax_debug_nans` says where, by its traceback.
  is_nan = isinstance(e, FloatingPointError) and not jax.config.jax_debug_nans
  if isinstance(e, _live_owner.OwnedError) or is_nan:
    return str(e)
  if isinstance(e, _storage_errors.ExplainedError):
    return _of_bucket(e, saved)
  if isinstance(e, StopIteration):
    return _ended.MESSAGE
  if line := _config_file.explain_resolved(e) or _gemmas_loaders.explain(e):
    return line
  if isinstance(e, _config_file.OF_USERS) and _config_file.is_told(e):
    return str(e)
  return _of_bucket(e, saved)


def _of_bucket(e: Exception, saved: Callable[[], str | None]) -> str | None:
  """Returns the line for an error of a bucket, or None.

  A checkpointer's errors say what is saved already. Those of a writer, an
  evaluator or a dataset do not.
  """
  found = _storage_errors.explain(e)
  if found is None:
    return None
  then = None if 'checkpoint there' in str(found) else saved()
  return f'{found} {then}' if then else str(found)


def _prepare(flag: flags.Flag, *, trains: bool) -> None:
  """Checks the workdir; gives a run a checkpointer that saves at SIGTERM.

  `g4.ckpts.Checkpointer` is Kauldron's, with the same options and files. It
  also saves to buckets. `g4.train.TerminalWriter` is Kauldron's writer, which
  also prints.

  Args:
    flag: `--cfg`.
    trains: Whether it trains. An evaluation saves nothing.

  Raises:
    ValueError: There is no config, or the workdir is no path, or is in no bucket.
    ModuleNotFoundError: What reads such a path is not installed.
  """
  if not flag.present:
    raise ValueError('--cfg=... is missing: the config of the run.')
  # Each time it is built anew.
  cfg = _config_file.read(flag, overrides=_arguments.overrides(sys.argv))
  _booleans.check(flag, sys.argv)
  if cfg.get('workdir'):
    workdir = host.path(cfg.workdir, who='--cfg.workdir')
    _check_workdir(workdir, trains=trains)
  if not trains:
    return
  _print_to_terminal(cfg)
  warnings.filterwarnings('ignore', 'The value of the flag is not')
  flag.value = cfg
  if take_our_checkpointer(cfg):
    _stop_signals.tell(
        'checkpointer=kd.ckpts.Checkpointer: g4.ckpts.Checkpointer takes its'
        ' place, which writes the same files and also saves when the run is'
        ' stopped.'
    )


def take_our_checkpointer(cfg: konfig.ConfigDict) -> bool:
  """Puts `g4.ckpts.Checkpointer` in the place of Kauldron's, if that is there.

  Args:
    cfg: Config of a trainer.

  Returns:
    Whether it was there.
  """
  checkpointer = cfg.get('checkpointer')
  if not checkpointer or checkpointer.get(_CLASS) != _KAULDRONS:
    return False
  checkpointer[_CLASS] = _OURS
  return True


def _print_to_terminal(cfg: konfig.ConfigDict) -> None:
  """Gives a trainer with Kauldron's own writer one that also prints."""
  if cfg.get(_CLASS) != _TRAINER:
    return
  if 'writer' not in cfg:
    cfg.writer = konfig.ConfigDict({_CLASS: _OUR_WRITER})
  elif cfg.writer and cfg.writer.get(_CLASS) == _WRITER:
    cfg.writer[_CLASS] = _OUR_WRITER


def _check_workdir(workdir: epath.Path, *, trains: bool) -> None:
  """Raises if a run could not be saved there.

  Before Kauldron makes the folder: where there is no bucket, TensorFlow tries
  without end, and a signal does not end that.
  """
  if trains:
    _paths.check_orbax_can_write(workdir, who='--cfg.workdir')
    _in_the_way.check_length(workdir, who='--cfg.workdir')
    _in_the_way.check_no_file(workdir, who='--cfg.workdir')
  if not host.is_local(workdir):
    _in_the_way.check_bucket(workdir, who='--cfg.workdir')
