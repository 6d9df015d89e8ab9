"""Load registries: the shipped one, files, and mappings.

The parser is imported when it is needed, because it takes PyYAML, which importing this package must not.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, Callable, Mapping, Union

from .._arguments import check_path
from .._resources import registry_path
from .plugins import Plugin
from .specs import Registry

RegistrySource = Union[str, "os.PathLike[str]", Mapping[str, Any]]


def shipped_registry() -> Registry:
    """Return the registry that is part of this package, from its parsed copy where that is not out of date."""
    return load_file(registry_path(), load_shipped)


def load_shipped(path: Path) -> Registry:
    """Return the registry in ``path``, of which this package may have a parsed copy."""
    from .parsed_copy import read_copy  # here, as importing this package must not take it

    return read_copy(path) or load_source(path)


def load_source(source: RegistrySource) -> Registry:
    """Return the registry of a path or a mapping; raise ArgumentError for anything else, and RegistryError."""
    from .parser import load_registry, registry_from_mapping

    if isinstance(source, Mapping):
        return registry_from_mapping(source)
    return load_registry(absolute_path(source))


def load_file(path: Path, load: Callable[[Path], Registry] = load_source) -> Registry:
    """Load a registry file, which is read again only if it has changed."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return load_source(path)  # which raises the error
    return _load_version(load, path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=32)
def _load_version(load: Callable[[Path], Registry], path: Path, mtime_ns: int, size: int) -> Registry:
    return load(path)


def load_plugin_registry(plugin: Plugin) -> Registry:
    """Return the registry of a plugin; raise RegistryError if it cannot be used."""
    if isinstance(plugin.registry, Mapping):
        return _load_plugin_mapping(plugin)
    return load_file(Path(plugin.registry))


@functools.lru_cache(maxsize=32)
def _load_plugin_mapping(plugin: Plugin) -> Registry:
    return load_source(plugin.registry)


def absolute_path(path: Union[str, os.PathLike[str]]) -> Path:
    """Return the absolute path of a registry, with ``~`` replaced; raise ArgumentError for what is not a path."""
    expanded = check_path("the registry", path)
    return Path(os.path.abspath(expanded))  # noqa: PTH100 - resolve() would follow the user's links
