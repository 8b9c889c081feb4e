"""What is wrong with a run, seen at its start or while it trains."""
