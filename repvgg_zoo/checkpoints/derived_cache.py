"""The native cache: what was made of a publisher's file, native arrays and fused ones, kept for the next time.

It lies in the folder ``native`` of the cache, a safetensors file for each source file and form. It may be deleted at
any time, and failing to write it is no error: the publisher's file, which alone is verified against the registry, is
read again then.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Optional

from ..errors import ZooError
from ..hub.cache import Stamp, read_stamp, write_stamp
from ..registry.specs import CheckpointSpec
from ..reparam.fusion import fuse_arrays
from . import Checkpoint, load_checkpoint
from .save import write_safetensors, write_whole

logger = logging.getLogger(__name__)

# To be raised whenever the arrays made of the same file would change: the layouts' tables, shapes, or the fusion.
MAPPING_VERSION = 1


def load_fetched(path: Path, spec: CheckpointSpec, *, deploy: bool, cache: Path) -> Checkpoint:
    """The arrays of a fetched file, fused if it is a train form and ``deploy`` is wanted; kept ones where there are.

    The file is known by the digest in its stamp; without one nothing is kept, nor is anything in a plug-in's layout,
    which may change while the file stays the same. Raises what ``load_checkpoint`` and
    ``fuse_arrays`` raise.
    """
    form = "deploy" if deploy else spec.form
    source = read_stamp(path)
    is_native = (spec.format, spec.layout, spec.form) == ("safetensors", "native", form)
    if source is None or is_native or "/" in spec.layout:
        return _made(path, spec, form)
    kept = cache / "native" / f"{source.sha256[:16]}-{form}-v{MAPPING_VERSION}.safetensors"
    found = _read_kept(kept, source)
    if found is None:
        made = _made(path, spec, form)
        _keep(kept, made, source)
        # A map of what was just written takes no memory, what was made does.
        found = _read_kept(kept, source) or made
    return replace(found, path=str(path))


def _made(path: Path, spec: CheckpointSpec, form: str) -> Checkpoint:
    checkpoint = load_checkpoint(path, layout=spec.layout)
    if form == "deploy" and checkpoint.form == "train":
        return replace(checkpoint, arrays=MappingProxyType(fuse_arrays(checkpoint.arrays)), form=form)
    return checkpoint


def _read_kept(kept: Path, source: Stamp) -> Optional[Checkpoint]:
    """What was kept, if it is still the file that was written and was made of this source."""
    try:
        status = kept.stat()
        if read_stamp(kept) != _stamp(status.st_size, status.st_mtime_ns, source):
            return None
        return load_checkpoint(kept, layout="native")
    except (OSError, ZooError) as error:
        logger.debug("the native cache has nothing to use: %s", error)
        return None


def _keep(kept: Path, checkpoint: Checkpoint, source: Stamp) -> None:
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        # The stamp holds the size, which tells a file that a power cut left short; waiting for the disk takes 0.6 s.
        write_whole(kept, lambda stream: write_safetensors(stream, checkpoint.arrays), durable=False)
        status = kept.stat()
        write_stamp(kept, _stamp(status.st_size, status.st_mtime_ns, source))
    except (OSError, ZooError) as error:
        logger.debug("nothing kept in the native cache: %s", error)


def _stamp(size: int, mtime_ns: int, source: Stamp) -> Stamp:
    """A stamp whose digest is the source's: it says what the arrays were made of."""
    return Stamp(size=size, mtime_ns=mtime_ns, sha256=source.sha256, integrity="native")
