"""Reports on a config's data: counts and examples."""
