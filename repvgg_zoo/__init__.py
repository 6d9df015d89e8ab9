"""A model zoo registry for RepVGG in MegEngine."""
