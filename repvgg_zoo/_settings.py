"""The settings of the hub loader, read from the environment at each call, never at import."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Optional, Tuple

from repvgg_zoo.errors import ArgumentError

HOME = "REPVGG_ZOO_HOME"
CACHE_DIRS = "REPVGG_ZOO_CACHE_DIRS"
MIRROR = "REPVGG_ZOO_MIRROR"
REWRITE = "REPVGG_ZOO_REWRITE"
OFFLINE = "REPVGG_ZOO_OFFLINE"
ALLOW_UNVERIFIED = "REPVGG_ZOO_ALLOW_UNVERIFIED"
PROGRESS = "REPVGG_ZOO_PROGRESS"
REGISTRY_ENV = "REPVGG_ZOO_REGISTRY"  # registry files besides the shipped one
PLUGINS_ENV = "REPVGG_ZOO_PLUGINS"

_YES = ("1", "true", "yes", "on")
_NO = ("0", "false", "no", "off")
PLUGIN_MODES = ("on", "strict", "off")


@dataclass(frozen=True)
class Settings:
    """What the environment says.

    ``cache`` is the folder that is written to; ``read_only`` are cache folders that are searched before it and never
    written. ``mirrors`` are URLs or folders that serve files under their stored names; ``rewrites`` are pairs of URL
    prefixes (old, new). ``progress`` is None where the terminal decides.
    """

    cache: Path
    read_only: Tuple[Path, ...] = ()
    mirrors: Tuple[str, ...] = ()
    rewrites: Tuple[Tuple[str, str], ...] = ()
    offline: bool = False
    allow_unverified: bool = False
    progress: Optional[bool] = None


def read_settings(environ: Optional[Mapping[str, str]] = None) -> Settings:
    """The settings that hold now; raises ArgumentError for a value that cannot be meant."""
    env = os.environ if environ is None else environ
    return Settings(
        cache=_cache_home(env),
        read_only=tuple(_folder(CACHE_DIRS, part) for part in _split(env.get(CACHE_DIRS, ""), os.pathsep)),
        mirrors=tuple(_split(env.get(MIRROR, ""))),
        rewrites=tuple(_rewrite(rule) for rule in _split(env.get(REWRITE, ""))),
        offline=_switch(env, OFFLINE) or False,
        allow_unverified=_switch(env, ALLOW_UNVERIFIED) or False,
        progress=_switch(env, PROGRESS),
    )


def _cache_home(env: Mapping[str, str]) -> Path:
    if env.get(HOME):
        return _folder(HOME, env[HOME])
    # MegEngine's own rule: $MGE_HOME, else $XDG_CACHE_HOME/megengine, else ~/.cache/megengine.
    for variable, below in (("MGE_HOME", ""), ("XDG_CACHE_HOME", "megengine")):
        if env.get(variable):
            return _folder(variable, env[variable]) / below / "repvgg_zoo"
    return _folder(HOME, "~/.cache/megengine/repvgg_zoo")


def _folder(variable: str, value: str) -> Path:
    expanded = os.path.expanduser(value)  # noqa: PTH111 - Path's own raises where this leaves the "~" to be seen
    if "\0" in expanded or expanded.startswith("~"):
        raise ArgumentError(
            f"{variable} does not name a folder: {value!r}",
            hint=f"set {HOME} to an absolute path",
            expected="a path",
            actual=value,
        )
    return Path(os.path.abspath(expanded))  # noqa: PTH100 - resolve() would follow the user's links


def _split(value: str, separator: Optional[str] = None) -> Tuple[str, ...]:
    return tuple(part.strip() for part in value.split(separator) if part.strip())


def _rewrite(rule: str) -> Tuple[str, str]:
    old, equals, new = rule.partition("=")
    if not (old and equals and new):
        raise ArgumentError(
            f"{REWRITE} holds {rule!r}, which is no rule",
            hint="write old-prefix=new-prefix, several separated by spaces",
            expected="old-prefix=new-prefix",
            actual=rule,
        )
    return old, new


def _switch(env: Mapping[str, str], variable: str) -> Optional[bool]:
    value = env.get(variable, "").strip().lower()
    if not value:
        return None
    if value in _YES or value in _NO:
        return value in _YES
    raise ArgumentError(
        f"{variable} is {value!r}",
        hint=f"use one of {', '.join(_YES)} or {', '.join(_NO)}",
        expected=_YES + _NO,
        actual=value,
    )


def plugin_mode() -> str:
    """Return "on" (the default), "strict" or "off"; raise ArgumentError for any other value."""
    mode = os.environ.get(PLUGINS_ENV, "").strip().lower() or "on"
    if mode not in PLUGIN_MODES:
        raise ArgumentError(
            f"{PLUGINS_ENV} is {mode!r}", expected=PLUGIN_MODES, actual=mode, hint=f"use {', '.join(PLUGIN_MODES)}"
        )
    return mode


def registry_files() -> Tuple[Path, ...]:
    """Return the absolute paths of the user's registry files."""
    names = _split(os.environ.get(REGISTRY_ENV, ""), os.pathsep)
    return tuple(Path(os.path.abspath(os.path.expanduser(name))) for name in names)  # noqa: PTH100, PTH111 - as above
