"""One line of the report."""

import dataclasses

# The machine's Python may be too old (a TPU VM's is 3.10): uv brings its own.
# As a module, because scripts that pip installs may not be on `PATH`.
BRING_PYTHON = (
    'pip install uv && python3 -m uv venv --seed --python 3.12 gemma4'
    ' && . gemma4/bin/activate'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
  """The result of one check.

  Attributes:
    subject: What was checked, `'jax'`.
    says: What was found, `'0.12.0'`.
    fix: What to type or do; empty if all is well.
    is_note: Whether it is shown, and is no failure.
  """

  subject: str
  says: str
  fix: str = ''
  is_note: bool = False

  @property
  def ok(self) -> bool:
    return not self.fix or self.is_note

  def __str__(self) -> str:
    if not self.fix:
      return f'OK     {self.subject}: {self.says}'
    mark = 'note ' if self.is_note else 'WRONG'
    return f'{mark}  {self.subject}: {self.says}. {self.fix}'
