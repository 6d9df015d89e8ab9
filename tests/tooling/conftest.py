"""The model card's code runs against the same stand-in for GitHub as hubconf.py does."""

from ..hubconf.conftest import github

__all__ = ["github"]
