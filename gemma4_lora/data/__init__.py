"""Gemma 4 chat tasks for grain pipelines."""
