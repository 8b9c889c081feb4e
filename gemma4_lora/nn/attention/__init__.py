"""Attention in blocks and by kernels, in place of gemma's."""
