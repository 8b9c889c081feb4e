"""PEFT folders: names, settings and tensors, by the rows of a model."""
