"""What the processor is and how much of it may be used; imports nothing of the zoo, and no framework."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Dict


def usable_cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_facts() -> Dict[str, str]:
    """What Linux says of the first processor ("model name", "flags" ...); empty on other systems."""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
        return {name.strip(): value.strip() for name, colon, value in lines if colon}
    return {}


def cpu_name() -> str:
    """The processor's name as its maker writes it."""
    return cpu_facts().get("model name") or platform.processor() or "unknown"
