"""The credentials of private mirrors and hosts: HTTP headers for exactly one scheme, host and port.

An entry is a line ``https://host[:port] Header-Name: value``; a host may have several. Its value appears in no message,
log or representation.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Tuple
from urllib.parse import urlsplit

from .._files import open_regular_file
from .._log import get_logger
from .._settings import CREDENTIALS_ENV, CREDENTIALS_FILE_ENV, HF_ENDPOINT_ENV, HF_TOKEN_ENV, read_secrets
from .._urls import Origin, origin
from ..errors import ArgumentError

MAX_FILE_BYTES = 1 << 20
_ENTRY_HINT = "write one entry a line, such as: https://files.example Authorization: Bearer TOKEN"
# Those that a download sets itself, or that change where a request ends.
_OWN_HEADERS = ("accept-encoding", "cache-control", "connection", "content-length", "host", "if-range", "range", "te")

logger = get_logger("repvgg_zoo.hub")


@dataclass(frozen=True)
class Header:
    """A header field that is sent to one origin."""

    name: str
    value: str = field(repr=False)


Credentials = Mapping[Origin, Tuple[Header, ...]]


def read_credentials(environ: Optional[Mapping[str, str]] = None) -> Credentials:
    """Return the headers to send to each origin; raises ArgumentError, without the secret, if an entry is not valid."""
    secrets = read_secrets(environ)
    entries: Dict[Origin, List[Header]] = {}
    for where, text in (
        (CREDENTIALS_ENV, secrets.credentials),
        (CREDENTIALS_FILE_ENV, _read_private_file(secrets.credentials_file) if secrets.credentials_file else ""),
    ):
        for address, header in _parse(text, where):
            headers = entries.setdefault(address, [])
            if header.name.lower() in (other.name.lower() for other in headers):
                raise ArgumentError(
                    f"{where} sets the header {header.name} of {address.host} twice", hint="remove one of the two"
                )
            headers.append(header)
    if secrets.hf_token:
        endpoint = origin(secrets.hf_endpoint)
        if not _VALUE.fullmatch(secrets.hf_token):
            raise ArgumentError(f"{HF_TOKEN_ENV} has characters that no token has", hint=f"set {HF_TOKEN_ENV} again")
        if _is_private_channel(endpoint):
            entries.setdefault(endpoint, [Header("Authorization", f"Bearer {secrets.hf_token}")])
        else:
            logger.warning("%s is not sent, because %s is not an https: URL", HF_TOKEN_ENV, HF_ENDPOINT_ENV)
    return {address: tuple(headers) for address, headers in entries.items()}


_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


def _parse(text: str, where: str) -> Iterator[Tuple[Origin, Header]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            address, header, problem = _parse_entry(line)
            if problem:
                raise ArgumentError(f"line {number} of {where} is not valid: {problem}", hint=_ENTRY_HINT)
            yield address, header


def _parse_entry(line: str) -> Tuple[Origin, Header, str]:
    """Return an entry and what is wrong with it, in words without the secret, which may be anywhere in the line."""
    url, _, rest = line.strip().partition(" ")
    name, _, value = rest.partition(":")
    header = Header(name.strip(), value.strip())
    address, problem = origin(url), ""
    parts = urlsplit(url) if address.host else None
    if parts is None or "@" in parts.netloc or parts.path not in ("", "/") or parts.query or parts.fragment:
        problem = "it does not begin with a scheme and a host, such as https://files.example, without a path"
    elif not _is_private_channel(address):
        problem = "a credential is sent over https: only, or to this machine itself"
    elif not _NAME.fullmatch(header.name) or not _VALUE.fullmatch(header.value):
        problem = "a header, such as Authorization: Bearer TOKEN, does not follow the host"
    elif header.name.lower() in _OWN_HEADERS:
        problem = "this header is set by the download itself"
    return address, header, problem


def _is_private_channel(address: Origin) -> bool:
    """Return whether nobody on the way can read what is sent: https, or plain http that stays on this machine."""
    if address.scheme == "http":
        try:
            return address.host == "localhost" or ipaddress.ip_address(address.host).is_loopback
        except ValueError:
            return False
    return address.scheme == "https" and bool(address.host)


def _read_private_file(path: Path) -> str:
    """Return the text of a file that only this user can read; raises ArgumentError."""
    hint = _ENTRY_HINT
    try:
        with open_regular_file(path) as stream:
            status = os.fstat(stream.fileno())
            if hasattr(os, "geteuid") and status.st_uid != os.geteuid():  # elsewhere neither owner nor mode say much
                problem, hint = "belongs to another user", "use a file of your own, with mode 0600"
            elif hasattr(os, "geteuid") and status.st_mode & 0o077:
                problem, hint = "other users can read or change", f"chmod 600 {path}"
            elif status.st_size > MAX_FILE_BYTES:
                problem = "is larger than 1 MiB"
            else:
                return stream.read(MAX_FILE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:  # whose message repeats what is in the file
        problem = "is not UTF-8 text"
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    raise ArgumentError(f"{CREDENTIALS_FILE_ENV} names {path}, which {problem}", hint=hint)
