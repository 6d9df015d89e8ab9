"""What makes two compilations the same: the network's weights and structure, and the machine."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from pathlib import Path
from typing import Any, List, Optional

import megengine.module as M
import numpy as np

from .. import models
from .._cpu import cpu_facts
from .._tensors import numpy_views
from ..registry.specs import Architecture, CheckpointSpec

PLAIN = (bool, int, float, str, type(None))
KNOWN = ("megengine", models.__name__)
SOURCES = ("adapt.py", "builder.py", "checkpoints/**/*.py", "models/*.py", "reparam/*.py", "inference/**/*.py")


def network_digest(network: M.Module) -> Optional[str]:
    """SHA-256 of everything that decides what ``network`` computes in eval mode, or None if that cannot be known.

    It covers each module's class and plain attributes (stride, padding, eps ...), each tensor's name, shape, dtype and
    bytes, and the source of the zoo's own code. None for a network with classes from elsewhere, forward hooks or a
    replaced ``forward``, whose code this cannot see.
    """
    digest = hashlib.sha256(_own_source())
    for name, module in network.named_modules():
        if not _is_known(module):
            return None
        digest.update(f"{name}:{type(module).__module__}.{type(module).__qualname__}{_attributes(module)}\n".encode())
    for name, array in numpy_views(dict(network.named_tensors())).items():
        digest.update(f"{name}:{array.dtype}{array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def checkpoint_digest(file_sha256: str, spec: CheckpointSpec, architecture: Architecture) -> str:
    """The same for the deploy form of a checkpoint as ``create`` makes it, from the digest of its verified file."""
    facts = f"{file_sha256} {spec.format} {spec.layout} {spec.form} {architecture!r}"
    return hashlib.sha256(_own_source() + facts.encode()).hexdigest()


def _is_known(module: M.Module) -> bool:
    home = type(module).__module__
    ours = any(home == package or home.startswith(f"{package}.") for package in KNOWN)
    hooked = module._forward_pre_hooks or module._forward_hooks
    return ours and not hooked and "forward" not in vars(module)


def _attributes(module: M.Module) -> List[str]:
    found = []
    for name, value in sorted(vars(module).items()):
        if name in ("training", "_name") or not _is_plain(value):
            continue
        found.append(f"{name}={value!r}")
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return True
    return isinstance(value, PLAIN)


def _own_source() -> bytes:
    """All of the code that lies between a checkpoint's file, or a network, and the graph made of it."""
    # A change of it must not be answered with what was made before.
    package = Path(__file__).parent.parent
    files = [path for part in SOURCES for path in sorted(package.glob(part))]
    return b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)


def processor() -> str:
    """The processor's model and abilities: what the choice of algorithms depends on."""
    facts = cpu_facts()
    if "flags" not in facts:
        return f"{platform.machine()} {platform.processor()}"
    names = ("vendor_id", "cpu family", "model", "model name", "stepping", "cache size", "flags")
    return "; ".join(f"{name}: {facts.get(name, '')}" for name in names)
