"""MegEngine's default device for a program, and the machine that it runs on."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any, Dict

from .._cpu import cpu_name, usable_cores


def default_to_cpu() -> None:
    """Let MegEngine use the CPU if there is no GPU; otherwise it looks for one and prints a banner.

    It reads the variable when it is imported. A library must not select its user's device, but a program may.
    """
    if not has_gpu():
        os.environ.setdefault("MGE_DEFAULT_DEVICE", "cpux")


def has_gpu() -> bool:
    """Return whether there is an NVIDIA driver; MegEngine's wheels support no other GPU."""
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def machine_info() -> Dict[str, Any]:
    """Return the processor and the versions that a measurement depends on; imports MegEngine."""
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
