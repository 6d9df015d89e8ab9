"""The registry: YAML in, frozen specs out, found by any name."""
