"""Prepare MegEngine for a program, and describe the machine that it runs on."""

from __future__ import annotations

import os
import platform
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict

from .._cpu import cpu_name, usable_cores


def prepare_megengine() -> None:
    """Import MegEngine; without a GPU, keep it from looking for one and from printing a banner about it.

    A library must not select its user's device or touch its standard error, but a program may.
    """
    if has_gpu():
        return
    os.environ.setdefault("MGE_DEFAULT_DEVICE", "cpux")
    import megengine

    # Compiling uses the device "xpux" all the same, whose first use prints the banner to file descriptor 2.
    with suppress(OSError):
        stderr = os.dup(2)
        try:
            with open(os.devnull, "wb") as devnull:  # noqa: PTH123 - a descriptor, not a file
                os.dup2(devnull.fileno(), 2)
            megengine.Tensor(0.0, device="xpux").numpy()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


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
