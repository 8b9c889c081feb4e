"""`python -m gemma4_lora doctor`: what is wrong with this machine's installation.

Only the standard library and `packaging` are imported here: jax, TensorFlow and
gemma may be what is broken, so they are asked in processes of their own.
"""
