"""`python -m gemma4_lora`, and `gemma4_lora`: see `gemma4_lora --help`."""

from collections.abc import Sequence
import sys
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
  """Runs a command, and exits.

  Args:
    argv: The command and its options. Default: those of the process.
  """
  argv = sys.argv[1:] if argv is None else argv
  try:
    sys.exit(_run(argv))
  except KeyboardInterrupt:
    print('gemma4_lora: stopped.', file=sys.stderr)
    sys.exit(130)


def _run(argv: Sequence[str]) -> int:
  # Before anything below is imported, which may be what is broken.
  if [*argv] == ['doctor']:
    from gemma4_lora.doctor import _command  # pylint: disable=g-import-not-at-top

    return _command.main([])
  from gemma4_lora.commands import _cli  # pylint: disable=g-import-not-at-top

  return _cli.run(argv)


if __name__ == '__main__':
  main()
