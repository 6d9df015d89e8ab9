"""Credentials from the user's .netrc file."""

from __future__ import annotations

from typing import Optional, Tuple
from urllib.parse import urlsplit

from .._log import get_logger
from .._settings import netrc_path

logger = get_logger("repvgg_zoo.hub")


def netrc_credentials(url: str) -> Optional[Tuple[str, str]]:
    """Return user and password of the entry for the URL's host, or None.

    The ``default`` entry is not used: it names no host, so any registry's hosts would get the password.
    """
    import netrc

    path, host = netrc_path(), urlsplit(url).hostname
    if path is None or host is None:
        return None
    try:
        entry = netrc.netrc(str(path)).hosts.get(host)
    except (OSError, ValueError, netrc.NetrcParseError) as error:
        logger.warning("%s cannot be read (%s); no credentials are sent", path, type(error).__name__)
        return None
    if entry is None:
        return None
    login, account, password = entry
    return login or account or "", password or ""
