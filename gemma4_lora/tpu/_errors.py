"""Errors that a user can fix."""


class PlanError(ValueError):
  """No plan can be made; the message says what to change."""
