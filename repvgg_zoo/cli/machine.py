"""What this machine is, and MegEngine made ready for it."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any, Dict

from .._machine import cpu_name, usable_cores


def prepare_megengine() -> None:
    """Where no GPU is, keeps MegEngine from looking for one; to be called before it is imported.

    It prints a banner about the missing driver otherwise. A library must not choose its user's device, a program may.
    """
    if not has_gpu():
        os.environ.setdefault("MGE_DEFAULT_DEVICE", "cpux")


def has_gpu() -> bool:
    """Whether an NVIDIA driver is here; MegEngine's wheels know no other GPU."""
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def facts() -> Dict[str, Any]:
    """The machine and the versions, for whoever reads a measurement later; imports MegEngine."""
    import megengine
    import numpy

    from .. import __version__

    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "megengine": megengine.__version__,
        "repvgg_zoo": __version__,
        "device": megengine.get_default_device(),
    }
