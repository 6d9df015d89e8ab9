"""All environment variables that the package reads, and their values; read at each call, not at import."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Dict, Mapping, NamedTuple, Optional, Tuple

from ._redact import mask_credentials, redact
from ._urls import MIRROR_URL
from .errors import ArgumentError

PREFIX = "REPVGG_ZOO_"
HOME_ENV = "REPVGG_ZOO_HOME"  # the cache folder
CACHE_DIRS_ENV = "REPVGG_ZOO_CACHE_DIRS"  # read-only cache folders
MIRROR_ENV = "REPVGG_ZOO_MIRROR"
REWRITE_ENV = "REPVGG_ZOO_REWRITE"
OFFLINE_ENV = "REPVGG_ZOO_OFFLINE"
ALLOW_UNVERIFIED_ENV = "REPVGG_ZOO_ALLOW_UNVERIFIED"
PROGRESS_ENV = "REPVGG_ZOO_PROGRESS"
CREDENTIALS_ENV = "REPVGG_ZOO_CREDENTIALS"  # headers for private hosts: hub/credentials.py
CREDENTIALS_FILE_ENV = "REPVGG_ZOO_CREDENTIALS_FILE"
REGISTRY_ENV = "REPVGG_ZOO_REGISTRY"  # registry files besides the shipped one
PLUGINS_ENV = "REPVGG_ZOO_PLUGINS"
HF_ENDPOINT_ENV = "HF_ENDPOINT"  # these two as huggingface_hub reads them
HF_TOKEN_ENV = "HF_TOKEN"
TIMEOUT_ENV = "REPVGG_ZOO_TIMEOUT"  # seconds to connect
STALL_TIMEOUT_ENV = "REPVGG_ZOO_STALL_TIMEOUT"  # seconds in which (almost) no bytes arrive
RETRIES_ENV = "REPVGG_ZOO_RETRIES"  # of one source, after failures in a row
KEEP_THREAD_PRIORITY_ENV = "REPVGG_ZOO_KEEP_THREAD_PRIORITY"  # on: MegEngine's threads are left alone

# All of the above with our prefix, for whoever looks for misspelled ones.
VARIABLES: Tuple[str, ...] = tuple(
    value for name, value in sorted(globals().items()) if name.endswith("_ENV") and value.startswith(PREFIX)
)

# What torchrun, Open MPI, Slurm and MVAPICH call the number of a process on its machine.
_LOCAL_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MV2_COMM_WORLD_LOCAL_RANK")
_YES = ("1", "true", "yes", "on")
_NO = ("0", "false", "no", "off")
HF_ENDPOINT = "https://huggingface.co"
PLUGIN_MODES = ("on", "strict", "off")
# Not printed: tokens, and URLs, which may contain a password.
_SECRET = (CREDENTIALS_ENV, CREDENTIALS_FILE_ENV, HF_TOKEN_ENV, HF_ENDPOINT_ENV, MIRROR_ENV, REWRITE_ENV)
_QUOTES = ("'", '"')
_UNEXPANDED = re.compile(r"\$\w|\$\{|%\w+%")  # at the start of a path


class Settings(NamedTuple):
    """The settings of downloads and the cache.

    ``cache_dir`` is the folder that is written to; ``read_only_cache_dirs`` are searched before it and never written.
    ``mirrors`` are URLs or folders that serve files under their cache file names; ``url_rewrites`` are pairs of URL
    prefixes (old, new). ``progress`` is None if it depends on whether there is a terminal. ``hf_endpoint`` is the
    server of ``hf://`` sources.
    ``timeout`` and ``stall_timeout`` are in seconds; ``retries`` are those of one source after failures in a row.
    """

    cache_dir: Path
    read_only_cache_dirs: Tuple[Path, ...] = ()
    mirrors: Tuple[str, ...] = ()
    url_rewrites: Tuple[Tuple[str, str], ...] = ()
    offline: bool = False
    allow_unverified: bool = False
    progress: Optional[bool] = None
    hf_endpoint: str = HF_ENDPOINT
    timeout: float = 15.0
    stall_timeout: float = 30.0
    retries: int = 3

    def __repr__(self) -> str:
        rewrites = tuple((redact(old), redact(new)) for old, new in self.url_rewrites)
        printed = self._replace(mirrors=tuple(map(redact, self.mirrors)), url_rewrites=rewrites)
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in zip(self._fields, printed))})"


def read_settings(environ: Optional[Mapping[str, str]] = None) -> Settings:
    """Return the current settings; raises ArgumentError if a variable has an invalid value."""
    env = os.environ if environ is None else environ
    defaults = Settings._field_defaults
    read_only = _split(_value(CACHE_DIRS_ENV, env), os.pathsep)
    return Settings(
        cache_dir=_cache_dir(env),
        read_only_cache_dirs=tuple(_path(CACHE_DIRS_ENV, folder) for folder in read_only),
        mirrors=tuple(_url_or_folder(MIRROR_ENV, mirror, mirror) for mirror in _split(_value(MIRROR_ENV, env))),
        url_rewrites=tuple(_url_rewrite(rule) for rule in _split(_value(REWRITE_ENV, env))),
        offline=read_switch(OFFLINE_ENV, env) or False,
        allow_unverified=read_switch(ALLOW_UNVERIFIED_ENV, env) or False,
        progress=read_switch(PROGRESS_ENV, env),
        hf_endpoint=_hf_endpoint(env),
        timeout=_number(TIMEOUT_ENV, env, defaults["timeout"], 0.1, 3600),
        stall_timeout=_number(STALL_TIMEOUT_ENV, env, defaults["stall_timeout"], 0.1, 3600),
        retries=int(_number(RETRIES_ENV, env, defaults["retries"], 0, 100, whole=True)),
    )


class Secrets(NamedTuple):
    """What the environment says about credentials; not part of Settings, which are printed and passed around."""

    credentials: str
    credentials_file: Optional[Path]
    hf_token: str
    hf_endpoint: str

    def __repr__(self) -> str:
        return "Secrets(...)"


def read_secrets(environ: Optional[Mapping[str, str]] = None) -> Secrets:
    """Return the credentials as they are written in the environment; raises ArgumentError for an invalid path."""
    env = os.environ if environ is None else environ
    return Secrets(
        credentials=_value(CREDENTIALS_ENV, env),
        credentials_file=_credentials_file(_value(CREDENTIALS_FILE_ENV, env)),
        hf_token=_value(HF_TOKEN_ENV, env).strip(),
        hf_endpoint=_hf_endpoint(env),
    )


def read_switch(variable: str, environ: Optional[Mapping[str, str]] = None) -> Optional[bool]:
    """Return whether a variable is on or off, or None if it is not set; raises ArgumentError for any other value."""
    value = _value(variable, os.environ if environ is None else environ).strip().lower()
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
    """Return "on" (the default), "strict" or "off"; raises ArgumentError for any other value."""
    mode = _value(PLUGINS_ENV, os.environ).strip().lower() or "on"
    if mode not in PLUGIN_MODES:
        raise ArgumentError(
            f"{PLUGINS_ENV} is {mode!r}", expected=PLUGIN_MODES, actual=mode, hint=f"use {', '.join(PLUGIN_MODES)}"
        )
    return mode


def registry_files() -> Tuple[Path, ...]:
    """Return the absolute paths of the user's registry files."""
    return tuple(_path(REGISTRY_ENV, name) for name in _split(_value(REGISTRY_ENV, os.environ), os.pathsep))


def package_variables(environ: Optional[Mapping[str, str]] = None) -> Dict[str, str]:
    """Return all environment variables with the prefix of this package, known or not."""
    env = os.environ if environ is None else environ
    return {name: env[name] for name in sorted(env) if name.startswith(PREFIX)}


def terminal_styles_allowed(environ: Optional[Mapping[str, str]] = None) -> bool:
    """Return whether a terminal may show colors: NO_COLOR is not set, and TERM is not ``dumb``."""
    env = os.environ if environ is None else environ
    return not env.get("NO_COLOR") and env.get("TERM") != "dumb"


def is_first_local_rank(environ: Optional[Mapping[str, str]] = None) -> bool:
    """Return whether this process is the first of a distributed job on this machine, or of no such job."""
    env = os.environ if environ is None else environ
    return all(env.get(variable, "0") in ("", "0") for variable in _LOCAL_RANKS)


def has_megengine_home(environ: Optional[Mapping[str, str]] = None) -> bool:
    """Return whether MegEngine has a folder to write to; else it creates one called ``~`` in the current folder."""
    env = os.environ if environ is None else environ
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home raises where there is no home
    return bool(env.get("MGE_HOME") or env.get("XDG_CACHE_HOME") or home != "~")


def ca_bundle_setting(environ: Optional[Mapping[str, str]] = None) -> Tuple[str, str]:
    """Return the variable from which requests takes the trusted certificates, and its value; both empty if unset."""
    env = os.environ if environ is None else environ
    variable = next((name for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if env.get(name)), "")
    return variable, env.get(variable, "")


def proxy_variable(scheme: str, environ: Optional[Mapping[str, str]] = None) -> Optional[str]:
    """Return the variable that sets the proxy for URLs of a scheme, or None: some systems have a setting for that."""
    env = os.environ if environ is None else environ
    names = (f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY")
    return next((name for name in names if env.get(name)), None)


def netrc_path(environ: Optional[Mapping[str, str]] = None) -> Optional[Path]:
    """Return the user's .netrc file: $NETRC, ~/.netrc or ~/_netrc; None if it does not exist."""
    env = os.environ if environ is None else environ
    for name in (env["NETRC"],) if env.get("NETRC") else ("~/.netrc", "~/_netrc"):
        path = os.path.expanduser(name)  # noqa: PTH111 - Path.expanduser raises where there is no home
        if os.path.isfile(path):  # noqa: PTH113 - as above
            return Path(path)
    return None


def _cache_dir(env: Mapping[str, str]) -> Path:
    home = _value(HOME_ENV, env)
    if home:
        return _path(HOME_ENV, home)
    # MegEngine's own rule: $MGE_HOME, else $XDG_CACHE_HOME/megengine, else ~/.cache/megengine.
    for variable, below in (("MGE_HOME", ""), ("XDG_CACHE_HOME", "megengine")):
        value = _value(variable, env)
        if value:
            return _path(variable, value) / below / "repvgg_zoo"
    return _path(HOME_ENV, "~/.cache/megengine/repvgg_zoo")


def _credentials_file(value: str) -> Optional[Path]:
    expanded = Path(os.path.expanduser(value))  # noqa: PTH111 - as in _path
    if value and ("\0" in value or not expanded.is_absolute()):
        # Without the value: it may be the credential itself.
        raise ArgumentError(
            f"{CREDENTIALS_FILE_ENV} is not an absolute path",
            hint=f"write the path of a file; the entries themselves go into {CREDENTIALS_ENV}",
        )
    return expanded if value else None


def _hf_endpoint(env: Mapping[str, str]) -> str:
    return _value(HF_ENDPOINT_ENV, env).rstrip("/") or HF_ENDPOINT


def _value(variable: str, env: Mapping[str, str]) -> str:
    """Return the value of a variable, "" if it is not set; raise ArgumentError for what a broken file has put into it.

    Files of variables, such as those of Docker and systemd, are not read as a shell reads them: quotes and the line
    ends of Windows become part of the value.
    """
    value = env.get(variable, "")
    bare = value.strip(" \t\n")
    if not bare.isprintable() and any(ord(character) < 32 and character not in "\t\n" for character in bare):
        problem = "contains a control character"
        hint = "remove it where the variable is set"
        if "\r" in bare:
            problem = "contains a carriage return"
            hint = "give the file that sets it the line ends of Unix: sed -i 's/\\r$//' FILE"
    elif bare.startswith(_QUOTES) or bare.endswith(_QUOTES):
        problem, hint = "contains quotes", f"set {variable} without them: not every file of variables is a shell script"
    else:
        return value
    printed = None if variable in _SECRET else value
    text = f"{variable} {problem}" + ("" if printed is None else f": {printed!r}")
    raise ArgumentError(text, hint=hint, expected="a value without it", actual=printed)


def _path(variable: str, value: str) -> Path:
    expanded = os.path.expanduser(value)  # noqa: PTH111 - Path.expanduser raises where this leaves the "~" in place
    hint = f"set {variable} to an absolute path"
    if _UNEXPANDED.match(value):
        hint += "; nothing has replaced the variable in it"
    elif value != value.strip():
        hint += " without spaces around it"
    elif not expanded.startswith("~"):
        return Path(os.path.abspath(expanded))  # noqa: PTH100 - resolve() would follow the user's links
    elif value.startswith("~/"):
        hint = f"set {HOME_ENV} to an absolute path; this user has no home folder"
    raise ArgumentError(f"{variable} is not a valid path: {value!r}", hint=hint, expected="a path", actual=value)


def _number(
    variable: str, env: Mapping[str, str], default: float, low: float, high: float, whole: bool = False
) -> float:
    text = _value(variable, env).strip()
    if not text:
        return default
    if re.fullmatch(r"[0-9]{1,9}" if whole else r"[0-9]{1,9}(\.[0-9]{1,9})?", text) and low <= float(text) <= high:
        return float(text)
    expected = f"a {'whole number' if whole else 'number of seconds'} from {low:g} to {high:g}"
    raise ArgumentError(f"{variable} is {text!r}", hint=f"use {expected}", expected=expected, actual=text)


def _split(value: str, separator: Optional[str] = None) -> Tuple[str, ...]:
    return tuple(part.strip() for part in value.split(separator) if part.strip())


def _url_or_folder(variable: str, value: str, entry: str) -> str:
    folder = os.path.expanduser(value)  # noqa: PTH111 - as in _path
    if re.fullmatch(MIRROR_URL, value) or os.path.isabs(folder):  # noqa: PTH117 - Path has no "~" of another user
        return folder
    printed = mask_credentials(entry).partition("?")[0]
    raise ArgumentError(
        f"{variable} contains {printed!r}, which is neither a URL nor an absolute folder",
        hint="write https://host/folder, or the folder's absolute path; the entries are separated by spaces, so "
        "a folder with a space in its name is written as a URL: file:///My%20Drive/zoo",
        expected="a URL or an absolute folder",
        actual=printed,
    )


def _url_rewrite(rule: str) -> Tuple[str, str]:
    old, equals, new = rule.partition("=")
    if not (old and equals and new):
        masked = mask_credentials(rule)
        raise ArgumentError(
            f"{REWRITE_ENV} contains {masked!r}, which is not a valid rewrite rule",
            hint="write old-prefix=new-prefix, several separated by spaces",
            expected="old-prefix=new-prefix",
            actual=masked,
        )
    # The "=" of a rule without one may be that of a signature in a query.
    return old, _url_or_folder(REWRITE_ENV, new, rule if "?" in old else new)
