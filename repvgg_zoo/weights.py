"""load_weights: the arrays of a fetched checkpoint, canonical and in the form that is needed, computed only once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Dict, Optional

import numpy as np

from ._derived_cache import DerivedCache, DerivedKey
from ._file_array import FileArray
from ._file_state import only_this_user_writes
from ._settings import read_settings
from .checkpoints import Checkpoint, CheckpointMetadata, LoadReport, load_checkpoint
from .checkpoints.formats import safetensors_file
from .checkpoints.load import CANONICALIZE_VERSION
from .checkpoints.metadata import METADATA_KEY, from_text, metadata_of_spec, to_text, uniform_bn_eps
from .checkpoints.save import write_safetensors
from .hub import VerifiedFile, fetch_verified
from .registry.specs import CheckpointSpec
from .reparam.fusion import FUSE_VERSION, fuse

MAX_READ_AT_ONCE = 1 << 14  # numbers of an array that is not left in the file: BN statistics, biases, stems


def load_weights(
    file: VerifiedFile, spec: CheckpointSpec, *, deploy: bool, cache_dir: Path, lazy: bool = False
) -> Checkpoint:
    """Return the canonical arrays of a verified file, fused if it is a train form and ``deploy`` is asked for.

    With ``lazy`` they may be FileArrays, whose values are read when they are copied.

    ``file`` is what ``fetch_verified`` returned for ``spec``. The result is stored in the derived cache below
    ``cache_dir``, except where the file holds these very arrays, and for a plugin's layout, which may change while the
    file stays the same. Raise what ``load_checkpoint`` and ``fuse`` raise.
    """
    form = "deploy" if deploy else spec.form
    is_canonical = (spec.format, spec.layout, spec.form) == ("safetensors", "canonical", form)
    key = None if is_canonical else weights_key(file, spec, form)
    if key is None:
        return _compute(file, spec, form)
    cache = DerivedCache(cache_dir)
    state_dict = _open(cache, key) if lazy else None
    if state_dict is None:
        payload = cache.read(key)
        state_dict = None if payload is None else safetensors_file.read(payload)
    if state_dict is None:
        checkpoint = _compute(file, spec, form)
        bn_eps = checkpoint.metadata.bn_eps
        text = to_text(CheckpointMetadata(bn_eps=bn_eps)) if bn_eps else None
        cache.write(key, lambda stream: write_safetensors(stream, checkpoint.state_dict, text))
        return checkpoint
    bn_eps = from_text(state_dict.pop(METADATA_KEY, "{}")).bn_eps
    return Checkpoint(
        state_dict=MappingProxyType(state_dict),
        form=form,
        layout=spec.layout,
        format=spec.format,
        path=str(file.path),
        report=LoadReport(loaded=tuple(state_dict)),
        source_sha256=file.sha256,
        metadata=replace(metadata_of_spec(spec), bn_eps=bn_eps, source_sha256=file.sha256),
    )


def fetch_weights(spec: CheckpointSpec, *, deploy: bool) -> Checkpoint:
    """Return what ``load_weights`` does for a published checkpoint, which is fetched; raises what ``fetch`` raises."""
    return load_weights(fetch_verified(spec.file), spec, deploy=deploy, cache_dir=read_settings().cache_dir)


def weights_key(file: VerifiedFile, spec: CheckpointSpec, form: str) -> Optional[DerivedKey]:
    """Return what the arrays of a form depend on, or None for a plugin's layout, of which nothing is known."""
    if "/" in spec.layout:
        return None
    parameters: Dict[str, Any] = {"layout": spec.layout, "form": form, "fuse": FUSE_VERSION}
    if spec.bn_eps is not None:
        parameters["bn_eps"] = spec.bn_eps
    return DerivedKey(file.sha256, "weights", CANONICALIZE_VERSION, parameters)


def _compute(file: VerifiedFile, spec: CheckpointSpec, form: str) -> Checkpoint:
    # Where others can write, the file may be another one by now.
    sha256 = None if only_this_user_writes(file.path.parent) else file.sha256
    checkpoint = load_checkpoint(file.path, layout=spec.layout, sha256=sha256)
    checkpoint = replace(with_spec(checkpoint, spec, file.sha256), source_sha256=file.sha256)
    return fuse(checkpoint) if form == "deploy" and checkpoint.form == "train" else checkpoint


def with_spec(checkpoint: Checkpoint, spec: CheckpointSpec, sha256: Optional[str]) -> Checkpoint:
    """Return the weights in a published file with what the registry says about them."""
    bn_eps = checkpoint.metadata.bn_eps
    if spec.bn_eps is not None and checkpoint.form == "train":
        bn_eps = uniform_bn_eps(checkpoint.state_dict, spec.bn_eps)
    return replace(checkpoint, metadata=replace(metadata_of_spec(spec), bn_eps=bn_eps, source_sha256=sha256))


def _open(cache: DerivedCache, key: DerivedKey) -> Optional[Dict[str, Any]]:
    """Return an entry's content with large arrays still in the file, or None if the entry has to be checked first."""
    region = cache.open_checked(key)
    if region is None:
        return None
    size = safetensors_file.header_bytes(region.read(0, 8))
    entries, metadata = safetensors_file.read_header(region.read(0, size), region.size)
    arrays = {
        name: FileArray(region, entry.start, entry.shape, np.dtype(safetensors_file.DTYPES[entry.dtype]))
        for name, entry in entries.items()
    }
    values = {name: array if array.size > MAX_READ_AT_ONCE else np.asarray(array) for name, array in arrays.items()}
    return {**values, METADATA_KEY: metadata[METADATA_KEY]} if METADATA_KEY in metadata else values
