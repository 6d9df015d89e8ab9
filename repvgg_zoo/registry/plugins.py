"""Plugins: installed packages that add variants, layouts and builders, discovered through entry points.

An entry point of the group ``repvgg_zoo.plugins`` has the plugin's namespace as its name and a ``Plugin`` as its
object. Nothing is looked up at import, and failures are not remembered: the next call tries again.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import time
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

from .._settings import PLUGINS_ENV, plugin_mode
from ..errors import ArgumentError, PathLike, PluginError, RegistryError, ZooError
from .names import normalize_name

GROUP = "repvgg_zoo.plugins"
NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
SLOW_SECONDS = 1.0


class Plugin:
    """What a package adds; every name in it, and in its registry, starts with its namespace: ``acme/...``.

    ``registry`` is the path of a YAML file, or a mapping of the same form. ``builders`` and ``layouts`` map names to
    objects, or to ``"module:object"``, which is imported when it is needed: the module that holds the plugin is
    imported for each listing, and should import no framework.

    A builder is called as ``build(architecture, num_classes=, in_chans=, deploy=, init_weights=)``, with
    ``features_only=True`` and ``out_indices=`` as well where feature maps are requested, and returns a MegEngine
    module. A layout is a ``repvgg_zoo.checkpoints.layouts.Layout``.
    """

    def __init__(
        self,
        registry: Union[PathLike, Mapping[str, Any]],
        builders: Mapping[str, Union[str, Callable[..., Any]]] = MappingProxyType({}),
        layouts: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.registry = registry
        self.builders = builders
        self.layouts = layouts


class PluginEntryPoint(NamedTuple):
    """The namespace as the plugin's author writes it, ``"module:object"``, and the distribution with its version."""

    namespace: str
    value: str
    distribution: str

    def error(self, message: str, hint: Optional[str] = None) -> PluginError:
        """Return a PluginError about this plugin."""
        return PluginError(
            f"the plugin {self.namespace} ({self.distribution}) {message}",
            plugin=self.namespace,
            distribution=self.distribution,
            hint=hint or f"report it to the authors of {self.distribution}, or set {PLUGINS_ENV}=off",
        )


def find_plugins() -> Dict[str, Tuple[PluginEntryPoint, ...]]:
    """Return the installed plugins by normalized namespace; several in one namespace are a conflict.

    Plugins are not imported. Unreadable metadata of a distribution is logged, or raised as a PluginError if plugins
    are strict.
    """
    by_namespace: Dict[str, Dict[str, PluginEntryPoint]] = {}
    if plugin_mode() != "off" and _may_have_plugins():
        for point in _entry_points():
            # Two distributions that name the same object add the same plugin, for example a package and its GPU build.
            by_namespace.setdefault(normalize_name(point.namespace), {}).setdefault(point.value, point)
    return {namespace: tuple(points.values()) for namespace, points in sorted(by_namespace.items())}


def find_plugin(name: str) -> Optional[PluginEntryPoint]:
    """Return the plugin that ``name`` belongs to, or None; raise PluginError if several claim its namespace."""
    namespace, slash, _ = normalize_name(name).partition("/")
    claimants = find_plugins().get(namespace, ()) if slash else ()
    return require_single(claimants) if claimants else None


def require_single(claimants: Tuple[PluginEntryPoint, ...]) -> PluginEntryPoint:
    """Return the only plugin of a namespace; raise PluginError, which names them all, if there are several."""
    if len(claimants) > 1:
        names = " and ".join(sorted(f"{point.distribution} ({point.value})" for point in claimants))
        raise PluginError(
            f"the namespace {claimants[0].namespace} is claimed by {names}, so neither is used",
            plugin=claimants[0].namespace,
            distribution=", ".join(sorted(point.distribution for point in claimants)),
            hint="uninstall all but one of them",
        )
    return claimants[0]


@functools.lru_cache(maxsize=64)
def load_plugin(point: PluginEntryPoint) -> Plugin:
    """Import a plugin and check its names; raise PluginError with the cause.

    An import cannot be interrupted, so a slow one is waited for and logged.
    """
    start = time.perf_counter()
    plugin = _import_object(point, point.value)
    seconds = time.perf_counter() - start
    if seconds > SLOW_SECONDS:
        _warn(
            "the plugin %s (%s) took %.1f s to import %s; every listing of models waits for it",
            *(point.namespace, point.distribution, seconds, point.value),
        )
    if not isinstance(plugin, Plugin):
        raise point.error(f"has a {type(plugin).__name__} at {point.value}, where a repvgg_zoo.Plugin is expected")
    if not isinstance(plugin.registry, (str, os.PathLike, Mapping)):
        raise point.error("has no registry", "pass the path of a YAML file, or a mapping")
    if not isinstance(plugin.registry, Mapping) and not Path(plugin.registry).is_absolute():
        raise point.error(
            f"has a registry at {plugin.registry}, which is not an absolute path",
            'write Path(__file__).with_name("registry.yaml")',
        )
    if not isinstance(plugin.builders, Mapping) or not isinstance(plugin.layouts, Mapping):
        raise point.error("has builders or layouts that are not a mapping", "pass a dict from name to object")
    for name in (*plugin.builders, *plugin.layouts):
        if not in_namespace(point, name):
            raise point.error(f"adds {name!r}, which is outside its namespace", f"name it {point.namespace}/{name}")
    return plugin


def find_builder(name: str) -> Tuple[PluginEntryPoint, Callable[..., Any]]:
    """Return the builder called ``acme/name`` and its plugin.

    Raise PluginError if the plugin cannot be used, or RegistryError if the builder does not exist.
    """
    point, builder = _find_part("builder", name, RegistryError)
    if not callable(builder):
        raise point.error(f"has a {type(builder).__name__} as {name}, where a function is expected")
    return point, builder


def find_layout(name: str) -> Tuple[PluginEntryPoint, Any]:
    """Return the layout called ``acme/name`` and its plugin.

    Raise PluginError if the plugin cannot be used, or ArgumentError if the layout does not exist.
    """
    return _find_part("layout", name, ArgumentError)


def plugin_layouts(name: str) -> Tuple[str, ...]:
    """Return the names of the layouts of the plugin that the variant ``name`` belongs to; raise PluginError."""
    point = find_plugin(name)
    return () if point is None else tuple(load_plugin(point).layouts)


def in_namespace(point: PluginEntryPoint, name: str) -> bool:
    """Return whether ``name`` is in this plugin's namespace."""
    namespace, _, rest = normalize_name(name).partition("/")
    return namespace == normalize_name(point.namespace) and bool(rest)


def warn_or_raise(error: ZooError) -> None:
    """Raise ``error`` if plugins are strict, else log it; the same error is logged only once."""
    if plugin_mode() == "strict":
        raise error
    _warn_once(str(error))


@functools.lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    _warn("left out: %s", message)


def _warn(message: str, *values: object) -> None:
    from .._log import get_logger  # here, because listing models without a warning does not need it

    get_logger("repvgg_zoo.plugins").warning(message, *values)


def _find_part(kind: str, name: str, missing: Callable[..., ZooError]) -> Tuple[PluginEntryPoint, Any]:
    point = find_plugin(name)
    parts: Mapping[str, Any] = {} if point is None else getattr(load_plugin(point), f"{kind}s")
    key = normalize_name(name)
    part = next((value for other, value in parts.items() if normalize_name(other) == key), None)
    if point is None or part is None:
        choices = ", ".join(parts) or "none"
        reason = f"plugin {name.partition('/')[0]} is not installed" if point is None else f"it has {choices}"
        raise missing(
            f"unknown {kind} {name!r}: {reason}",
            expected=list(parts),
            actual=name,
            hint="install the plugin" if point is None else f"choose from {choices}",
        )
    return point, _import_object(point, part) if isinstance(part, str) else part


def _import_object(point: PluginEntryPoint, value: str) -> Any:
    from importlib.metadata import EntryPoint

    try:
        return EntryPoint(point.namespace, value, GROUP).load()
    except (Exception, SystemExit) as error:  # whatever the plugin's code does, except the user's interrupt
        raise point.error(f"fails at {value}: {format_exception(error)}") from error


def format_exception(error: BaseException) -> str:
    """Return "Type: message", or "Type" for an exception without a message."""
    return f"{type(error).__name__}: {error}".rstrip(": ")


# Discovery ---------------------------------------------------------------------------------------------------


def _may_have_plugins() -> bool:
    """Return whether a distribution on sys.path may have a plugin.

    Importing and asking importlib.metadata takes 45 ms, more than the rest of a listing; this takes 2 ms.
    """
    group = GROUP.encode()
    for folder in dict.fromkeys(sys.path):
        try:
            names = os.listdir(folder or ".")  # noqa: PTH208 - a Path for each of some hundred files is slower
        except NotADirectoryError:
            return True  # an archive, which importlib.metadata can read
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                try:
                    with open(os.path.join(folder, name, "entry_points.txt"), "rb") as file:  # noqa: PTH118, PTH123
                        if group in file.read():
                            return True
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError:
                    return True
    return False


def _entry_points() -> List[PluginEntryPoint]:
    """Return the entry points of our group, of each distribution once."""
    from importlib.metadata import distribution, distributions

    points: Dict[str, List[PluginEntryPoint]] = {}
    for candidate in distributions():
        path = getattr(candidate, "_path", "a distribution")
        try:
            # Few distributions have plugins, and reading this file is faster than reading the name.
            if GROUP not in (candidate.read_text("entry_points.txt") or ""):
                continue
            name = candidate.metadata["Name"]
            # Of two copies, for example a checkout and an installed wheel, Python imports the first, as this does.
            first = distribution(name)
            points[normalize_name(name)] = [
                _plugin_entry_point(point, first) for point in first.entry_points if point.group == GROUP
            ]
        except Exception as error:
            unreadable = PluginError(
                f"the metadata of {path} cannot be read: {format_exception(error)}",
                plugin=Path(str(path)).stem,
                distribution=str(path),
                hint="reinstall it",
            )
            unreadable.__cause__ = error
            warn_or_raise(error if isinstance(error, PluginError) else unreadable)
    return [point for group in points.values() for point in group]


def _plugin_entry_point(point: Any, distribution: Any) -> PluginEntryPoint:
    result = PluginEntryPoint(
        namespace=point.name,
        value=point.value,
        distribution=f"{distribution.metadata['Name']} {distribution.version}",
    )
    if not NAMESPACE.fullmatch(point.name):
        raise result.error(
            f"has the name {point.name!r}, which is not a valid namespace", "use letters, digits, - and _"
        )
    return result
