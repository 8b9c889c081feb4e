"""This machine: memory, threads, devices, folders."""
