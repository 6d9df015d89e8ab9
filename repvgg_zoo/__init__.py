"""A model zoo registry for RepVGG in MegEngine."""

__version__ = "0.1.0"
