"""Files that others wrote: what they are, and whether they keep their rules."""
