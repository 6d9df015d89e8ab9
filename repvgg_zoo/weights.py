"""load_weights: the arrays of a fetched checkpoint, canonical and in the form that is needed, computed only once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Optional

from ._derived_cache import DerivedCache, DerivedKey
from .checkpoints import Checkpoint, LoadReport, load_checkpoint
from .checkpoints.formats import safetensors_file
from .checkpoints.save import write_safetensors
from .hub.cache import read_stamp
from .registry.specs import CheckpointSpec
from .reparam.fusion import fuse_arrays

# To be raised whenever the same file would give other arrays: the layouts' tables, shapes, or the fusion.
VERSION = 1


def load_weights(path: Path, spec: CheckpointSpec, *, deploy: bool, cache_dir: Path) -> Checkpoint:
    """Return the canonical arrays of a verified file, fused if it is a train form and ``deploy`` is asked for.

    ``path`` is what ``fetch_file`` returned for ``spec``. The result is kept in the derived cache below ``cache_dir``,
    except where the file holds these very arrays, where its digest is not known, and for a plugin's layout, which may
    change while the file stays the same. Raise what ``load_checkpoint`` and ``fuse_arrays`` raise.
    """
    form = "deploy" if deploy else spec.form
    stamp = read_stamp(path)
    is_canonical = (spec.format, spec.layout, spec.form) == ("safetensors", "native", form)
    if stamp is None or is_canonical or "/" in spec.layout:
        return _compute(path, spec, form)
    key = DerivedKey(stamp.sha256, "weights", VERSION, {"layout": spec.layout, "form": form})
    cache = DerivedCache(cache_dir)
    checkpoint = _read(cache, key, spec, path, form)
    if checkpoint is None:
        checkpoint = _compute(path, spec, form)
        cache.write(key, lambda stream: write_safetensors(stream, checkpoint.arrays))
    return checkpoint


def _compute(path: Path, spec: CheckpointSpec, form: str) -> Checkpoint:
    checkpoint = load_checkpoint(path, layout=spec.layout)
    if form == "deploy" and checkpoint.form == "train":
        return replace(checkpoint, arrays=MappingProxyType(fuse_arrays(checkpoint.arrays)), form=form)
    return checkpoint


def _read(cache: DerivedCache, key: DerivedKey, spec: CheckpointSpec, path: Path, form: str) -> Optional[Checkpoint]:
    payload = cache.read(key)
    if payload is None:
        return None
    arrays = safetensors_file.read(payload)
    report = LoadReport(loaded=tuple(arrays))
    return Checkpoint(MappingProxyType(arrays), form, spec.layout, spec.format, str(path), report)
