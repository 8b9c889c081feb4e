"""Checks of a run, at its start and while it trains."""
