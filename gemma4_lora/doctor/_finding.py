"""One line of the report."""

import dataclasses

# A Python that we run on, where the machine's is another (a TPU VM's is 3.10): uv
# brings its own. As a module, for what pip installs may not be on `PATH`.
BRING_PYTHON = (
    'pip install uv && python3 -m uv venv --seed --python 3.12 gemma4'
    ' && . gemma4/bin/activate'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
  """What was looked at, and what came out.

  Attributes:
    subject: `'jax'`.
    says: What was found, `'0.12.0'`.
    fix: What to type, or to do; empty if all is well.
    is_note: Whether it may be as it should be: shown, and no failure.
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
