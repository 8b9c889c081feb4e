"""From a checkpoint to the arrays of a state: plan, policy, read."""
