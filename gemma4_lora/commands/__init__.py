"""The commands of a shell: their options, and what each calls."""
