"""What a run prints and logs: before its first step, and while it trains."""
