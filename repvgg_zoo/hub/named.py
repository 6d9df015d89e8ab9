"""fetch: a checkpoint's file by the name that the registry gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from ..registry.api import find_default_checkpoint
from .fetch import fetch_file


def fetch(name: str, *, offline: Optional[bool] = None, progress: Optional[bool] = None) -> Path:
    """The path of a checkpoint's file in the cache, downloaded if need be and verified. Needs no MegEngine.

    ``name`` is a variant (its default checkpoint) or ``variant.tag``. ``offline`` and ``progress`` are, by default, as
    the environment says: progress is shown on a terminal only.

    Raises UnknownModelError, NoWeightsError, and what ``fetch_file`` raises: OfflineError, UnverifiedError,
    DownloadError, IntegrityError, CacheError, DiskFullError.

    >>> import repvgg_zoo
    >>> repvgg_zoo.fetch("RepVGG_N0.digits").name
    '...-RepVGG_N0-digits.safetensors'
    """
    return fetch_file(find_default_checkpoint(name).file, offline=offline, progress=progress)
