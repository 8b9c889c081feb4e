"""Tasks whose rows have judged answers: which is better, or which is good."""
