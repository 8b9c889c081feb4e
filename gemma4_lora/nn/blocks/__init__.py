"""Blocks: rematerialisation and loops."""
