"""What this machine is, and MegEngine made ready for it."""

from __future__ import annotations

import os
import platform
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict


def prepare_megengine() -> None:
    """Where no GPU is, keeps MegEngine from looking for one; to be called before it is imported.

    It prints a banner about the missing driver otherwise. A library must not choose its user's device, a program may.
    """
    if not has_gpu():
        os.environ.setdefault("MGE_DEFAULT_DEVICE", "cpux")


def has_gpu() -> bool:
    """Whether an NVIDIA driver is here; MegEngine's wheels know no other GPU."""
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def usable_cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


def cpu_name() -> str:
    """The processor's name as its maker writes it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
