"""Sphinx's settings: Markdown pages, and the reference from the docstrings."""

from __future__ import annotations

from repvgg_zoo import __version__

project = "repvgg_zoo"
copyright = "the repvgg_zoo authors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
html_theme = "furo"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
