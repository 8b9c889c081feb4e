"""The command: prints each finding as soon as it is known."""

from collections.abc import Iterator
from collections.abc import Sequence
import sys

from gemma4_lora.doctor import _devices_in_child
from gemma4_lora.doctor import _finding
from gemma4_lora.doctor import _machine


def main(argv: Sequence[str]) -> int:
  """Prints all findings.

  Args:
    argv: Arguments; there are none.

  Returns:
    What the process exits with: 1 if something is wrong.
  """
  if argv:
    print(f'gemma4_lora: doctor takes no flags. Got: {argv}', file=sys.stderr)
    return 1
  number = 0
  for finding in _findings():
    print(finding, flush=True)
    number += not finding.ok
  if number:
    print(f'{number} wrong: see above what to type.')
  return 1 if number else 0


def _findings() -> Iterator[_finding.Finding]:
  try:
    # Needs `packaging`, and a Python that has `tomllib`.
    from gemma4_lora.doctor import _versions  # pylint: disable=g-import-not-at-top
  except ModuleNotFoundError as e:
    python = '.'.join(map(str, sys.version_info[:2]))
    yield _finding.Finding(
        subject='Python',
        says=f'{python} at {sys.executable} has no {e.name}',
        fix=f'Type: {_finding.BRING_PYTHON}, then install gemma4_lora',
    )
    return
  requires_python, requires = _versions.bounds()
  yield from _versions.check(
      _versions.installed(), requires, requires_python=requires_python
  )
  yield _devices_in_child.check(expected=_devices_in_child.hardware())
  yield from _machine.check()
