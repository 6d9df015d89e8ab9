"""What this machine is, and MegEngine made ready for it."""

from __future__ import annotations

import os
import platform
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict

from .._cpu import cpu_name, usable_cores


def prepare_megengine() -> None:
    """Imports MegEngine; where no GPU is, keeps it from looking for one and from printing a banner about its absence.

    A library must not choose its user's device or touch its standard error, a program may.
    """
    if has_gpu():
        return
    os.environ.setdefault("MGE_DEFAULT_DEVICE", "cpux")
    import megengine

    # Compiling needs the device "xpux" all the same, whose first use prints the banner straight to file descriptor 2.
    with suppress(OSError):
        kept = os.dup(2)
        try:
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a descriptor, not a file
                os.dup2(nowhere.fileno(), 2)
            megengine.Tensor(0.0, device="xpux").numpy()
        finally:
            os.dup2(kept, 2)
            os.close(kept)


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
