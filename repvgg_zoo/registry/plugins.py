"""Plug-ins: installed packages that bring variants, layouts and builders of their own, found through entry points.

An entry point of the group ``repvgg_zoo.plugins`` has the plug-in's namespace for its name and a ``Plugin`` for its
object. Nothing is looked for at import, and nothing that failed is remembered: the next call tries again.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import time
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

from .._settings import PLUGINS_ENV, plugin_mode
from ..errors import ArgumentError, PathLike, PluginError, RegistryError, ZooError
from .names import normalize_name
from .record import record

GROUP = "repvgg_zoo.plugins"
NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
SLOW_SECONDS = 1.0


@record(frozen=True, eq=False)
class Plugin:
    """What a package brings; every name in it, and in its registry, starts with its namespace: ``acme/...``.

    ``registry`` is the path of a YAML file, or a mapping of the same form. A builder is called as
    ``build(architecture, num_classes=, in_chans=, deploy=, init_weights=)``, with ``features_only=True`` and
    ``out_indices=`` as well where those are wanted, and gives a MegEngine module. A layout is a
    ``repvgg_zoo.checkpoints.layouts.Layout``. Both may be given as ``"module:object"``, which is imported when it is
    needed: the module that holds the plug-in is imported for each listing, and should import no framework.
    """

    registry: Union[PathLike, Mapping[str, Any]]
    builders: Mapping[str, Union[str, Callable[..., Any]]] = MappingProxyType({})
    layouts: Mapping[str, Any] = MappingProxyType({})


@record(frozen=True)
class PluginEntryPoint:
    """An entry point: the namespace as its author writes it, ``"module:object"``, and the distribution it is from."""

    namespace: str
    value: str
    distribution: str

    def error(self, message: str, hint: Optional[str] = None) -> PluginError:
        """A PluginError about this plug-in."""
        return PluginError(
            f"the plug-in {self.namespace} ({self.distribution}) {message}",
            plugin=self.namespace,
            distribution=self.distribution,
            hint=hint or f"report it to the authors of {self.distribution}; {PLUGINS_ENV}=off does without plug-ins",
        )


def find_plugins() -> Dict[str, Tuple[PluginEntryPoint, ...]]:
    """The installed plug-ins by their namespace as it is compared; more than one in a namespace is a clash.

    Nothing of them is imported. A distribution whose metadata cannot be read is told in the log, or raised as a
    PluginError if plug-ins are strict.
    """
    by_namespace: Dict[str, Dict[str, PluginEntryPoint]] = {}
    if plugin_mode() != "off" and _any_installed():
        for found in _entry_points():
            # Two distributions that name the same object bring the same plug-in, as a package and its GPU build do.
            by_namespace.setdefault(normalize_name(found.namespace), {}).setdefault(found.value, found)
    return {namespace: tuple(values.values()) for namespace, values in sorted(by_namespace.items())}


def find_plugin(name: str) -> Optional[PluginEntryPoint]:
    """The plug-in that ``name`` belongs to, or None; raises PluginError where two claim its namespace."""
    namespace, slash, _ = normalize_name(name).partition("/")
    claimants = find_plugins().get(namespace, ()) if slash else ()
    return require_single(claimants) if claimants else None


def require_single(claimants: Tuple[PluginEntryPoint, ...]) -> PluginEntryPoint:
    """The one plug-in of a namespace; raises PluginError, which names them all, if there are several."""
    if len(claimants) > 1:
        named = " and ".join(sorted(f"{found.distribution} ({found.value})" for found in claimants))
        raise PluginError(
            f"the namespace {claimants[0].namespace} is claimed by {named}, so neither is used",
            plugin=claimants[0].namespace,
            distribution=", ".join(sorted(found.distribution for found in claimants)),
            hint="uninstall all of them but one",
        )
    return claimants[0]


@functools.lru_cache(maxsize=64)
def load_plugin(found: PluginEntryPoint) -> Plugin:
    """Imports a plug-in and checks the names that it brings; raises PluginError with the cause.

    An import cannot be stopped half way, so a slow one is waited for, and told in the log.
    """
    started = time.perf_counter()
    plugin = _imported(found, found.value)
    seconds = time.perf_counter() - started
    if seconds > SLOW_SECONDS:
        _warn(
            "the plug-in %s (%s) took %.1f s to import %s; every listing of models waits for it",
            *(found.namespace, found.distribution, seconds, found.value),
        )
    if not isinstance(plugin, Plugin):
        raise found.error(f"is a {type(plugin).__name__} at {found.value}, where a repvgg_zoo.Plugin should be")
    if not isinstance(plugin.registry, (str, os.PathLike, Mapping)):
        raise found.error("has no registry", "give the path of a YAML file, or a mapping")
    if not isinstance(plugin.registry, Mapping) and not Path(plugin.registry).is_absolute():
        raise found.error(
            f"has a registry at {plugin.registry}, which is no absolute path",
            'write Path(__file__).with_name("registry.yaml")',
        )
    if not isinstance(plugin.builders, Mapping) or not isinstance(plugin.layouts, Mapping):
        raise found.error("has builders or layouts that are not a mapping", "give a dict from name to object")
    for name in (*plugin.builders, *plugin.layouts):
        if not in_namespace(found, name):
            raise found.error(f"brings {name!r}, which is outside its namespace", f"call it {found.namespace}/{name}")
    return plugin


def find_builder(name: str) -> Tuple[PluginEntryPoint, Callable[..., Any]]:
    """The builder called ``acme/name`` and where it is from; raises PluginError, or RegistryError if there is none."""
    found, builder = _part("builder", name, RegistryError)
    if not callable(builder):
        raise found.error(f"brings {name} as a {type(builder).__name__}, where a function should be")
    return found, builder


def find_layout(name: str) -> Tuple[PluginEntryPoint, Any]:
    """The layout called ``acme/name`` and where it is from; raises PluginError, or ArgumentError if there is none."""
    return _part("layout", name, ArgumentError)


def plugin_layouts(name: str) -> Tuple[str, ...]:
    """The names of the layouts that the plug-in of the variant ``name`` brings; raises PluginError."""
    found = find_plugin(name)
    return () if found is None else tuple(load_plugin(found).layouts)


def in_namespace(found: PluginEntryPoint, name: str) -> bool:
    """Whether ``name`` is one that this plug-in may give."""
    namespace, _, rest = normalize_name(name).partition("/")
    return namespace == normalize_name(found.namespace) and bool(rest)


def warn_or_raise(error: ZooError) -> None:
    """Raises ``error`` if plug-ins are strict, else logs it, the same one only once."""
    if plugin_mode() == "strict":
        raise error
    _warn_once(str(error))


@functools.lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    _warn("left out: %s", message)


def _warn(message: str, *values: object) -> None:
    import logging  # here and not above, because a listing without trouble needs none of it

    logging.getLogger("repvgg_zoo.plugins").warning(message, *values)


def _part(kind: str, name: str, missing: Callable[..., ZooError]) -> Tuple[PluginEntryPoint, Any]:
    found = find_plugin(name)
    parts: Mapping[str, Any] = {} if found is None else getattr(load_plugin(found), f"{kind}s")
    wanted = normalize_name(name)
    part = next((value for key, value in parts.items() if normalize_name(key) == wanted), None)
    if found is None or part is None:
        whose = f"no plug-in {name.partition('/')[0]} is installed" if found is None else f"it has {', '.join(parts)}"
        raise missing(
            f"no {kind} is called {name!r}: {whose}",
            expected=list(parts),
            actual=name,
            hint="install the plug-in" if found is None else f"choose from {', '.join(parts) or 'none'}",
        )
    return found, _imported(found, part) if isinstance(part, str) else part


def _imported(found: PluginEntryPoint, value: str) -> Any:
    from importlib.metadata import EntryPoint

    try:
        return EntryPoint(found.namespace, value, GROUP).load()
    except (Exception, SystemExit) as error:  # whatever their code does; only the user's own interrupt goes through
        raise found.error(f"fails at {value}: {format_exception(error)}") from error


def format_exception(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


# Finding -----------------------------------------------------------------------------------------------------


def _any_installed() -> bool:
    """Whether anything on sys.path may bring a plug-in.

    importlib.metadata takes 45 ms to import and ask, more than all the rest of a listing; this takes 2 ms.
    """
    group = GROUP.encode()
    for place in dict.fromkeys(sys.path):
        try:
            names = os.listdir(place or ".")  # noqa: PTH208 - a Path for each of some hundred files takes longer
        except NotADirectoryError:
            return True  # an archive, into which importlib.metadata can look
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                try:
                    with open(os.path.join(place, name, "entry_points.txt"), "rb") as file:  # noqa: PTH118, PTH123
                        if group in file.read():
                            return True
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError:
                    return True
    return False


def _entry_points() -> List[PluginEntryPoint]:
    """The entry points of our group, of each distribution once."""
    from importlib.metadata import distribution, distributions

    found: Dict[str, List[PluginEntryPoint]] = {}
    for candidate in distributions():
        place = getattr(candidate, "_path", "a distribution")
        try:
            # Few of them are ours, and reading this takes less time than reading a name.
            if GROUP not in (candidate.read_text("entry_points.txt") or ""):
                continue
            name = candidate.metadata["Name"]
            # Of two copies, such as a checkout and an installed wheel, Python imports the first, which this finds.
            first = distribution(name)
            found[normalize_name(name)] = [
                _checked(point, first) for point in first.entry_points if point.group == GROUP
            ]
        except Exception as error:
            unreadable = PluginError(
                f"the metadata of {place} cannot be read: {format_exception(error)}",
                plugin=Path(str(place)).stem,
                distribution=str(place),
                hint="install it again",
            )
            unreadable.__cause__ = error
            warn_or_raise(error if isinstance(error, PluginError) else unreadable)
    return [point for points in found.values() for point in points]


def _checked(point: Any, distribution: Any) -> PluginEntryPoint:
    found = PluginEntryPoint(
        namespace=point.name,
        value=point.value,
        distribution=f"{distribution.metadata['Name']} {distribution.version}",
    )
    if not NAMESPACE.fullmatch(point.name):
        raise found.error(f"has the name {point.name!r}, which is no namespace", "use letters, digits, - and _")
    return found
