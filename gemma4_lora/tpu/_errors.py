"""What a user can mend."""


class PlanError(ValueError):
  """There is no answer, and the message says what to change."""
