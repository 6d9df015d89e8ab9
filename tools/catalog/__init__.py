"""The catalog in the docs: all variants and checkpoints, from the registry. ``extension`` is what Sphinx loads."""
