"""Paths of registry.yaml and the bundled hub folder: inside an installed package, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path


def registry_path() -> Path:
    """Return the path of the shipped registry.yaml."""
    return _root() / "registry.yaml"


def hub_folder() -> Path:
    """Return the folder of the checkpoints that this repository publishes."""
    return _root() / "hub"


def _root() -> Path:
    package = Path(__file__).resolve().parent
    inside = package / "data"
    return inside if (inside / "registry.yaml").is_file() else package.parent
