"""The registry: YAML files to frozen specs, listed and looked up by name."""
