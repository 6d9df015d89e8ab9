"""load_weights: the arrays of a fetched checkpoint, canonical and in the form that is needed, computed only once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Optional

from ._derived_cache import DerivedCache, DerivedKey
from .checkpoints import Checkpoint, LoadReport, load_checkpoint
from .checkpoints.formats import safetensors_file
from .checkpoints.load import CANONICALIZE_VERSION
from .checkpoints.save import write_safetensors
from .hub import VerifiedFile
from .registry.specs import CheckpointSpec
from .reparam.fusion import FUSE_VERSION, fuse


def load_weights(file: VerifiedFile, spec: CheckpointSpec, *, deploy: bool, cache_dir: Path) -> Checkpoint:
    """Return the canonical arrays of a verified file, fused if it is a train form and ``deploy`` is asked for.

    ``file`` is what ``fetch_verified`` returned for ``spec``. The result is stored in the derived cache below
    ``cache_dir``, except where the file holds these very arrays, and for a plugin's layout, which may change while the
    file stays the same. Raise what ``load_checkpoint`` and ``fuse`` raise.
    """
    form = "deploy" if deploy else spec.form
    is_canonical = (spec.format, spec.layout, spec.form) == ("safetensors", "canonical", form)
    if is_canonical or "/" in spec.layout:
        return _compute(file, spec, form)
    parameters = {"layout": spec.layout, "form": form, "fuse": FUSE_VERSION}
    key = DerivedKey(file.sha256, "weights", CANONICALIZE_VERSION, parameters)
    cache = DerivedCache(cache_dir)
    checkpoint = _read(cache, key, spec, file)
    if checkpoint is None:
        checkpoint = _compute(file, spec, form)
        cache.write(key, lambda stream: write_safetensors(stream, checkpoint.state_dict))
    return checkpoint


def _compute(file: VerifiedFile, spec: CheckpointSpec, form: str) -> Checkpoint:
    checkpoint = replace(load_checkpoint(file.path, layout=spec.layout), source_sha256=file.sha256)
    return fuse(checkpoint) if form == "deploy" and checkpoint.form == "train" else checkpoint


def _read(cache: DerivedCache, key: DerivedKey, spec: CheckpointSpec, file: VerifiedFile) -> Optional[Checkpoint]:
    payload = cache.read(key)
    if payload is None:
        return None
    state_dict = safetensors_file.read(payload)
    return Checkpoint(
        state_dict=MappingProxyType(state_dict),
        form=key.parameters["form"],
        layout=spec.layout,
        format=spec.format,
        path=str(file.path),
        report=LoadReport(loaded=tuple(state_dict)),
        source_sha256=key.source,
    )
