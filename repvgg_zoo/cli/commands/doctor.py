"""repvgg-zoo doctor: what is wrong with this machine's set-up, and what to type."""

from __future__ import annotations

import argparse
import threading
import time
from typing import Callable, Dict, List, Sequence, Tuple

from ...errors import ArgumentError, ZooError
from ...hub import read_settings
from ..console import count, paint, show
from ..doctor import cache, python
from ..doctor.finding import FAIL, OK, WARN, Finding, fail

HELP = """
Looks at all that a working zoo needs: Python, NumPy, MegEngine and the other
packages, the cache, the disk, file locks, the registry, our environment
variables, mirrors and hosts. Each fault comes with what to type.

Exit code 1 for a fault; a warning is none.
"""
EXAMPLES = ("repvgg-zoo doctor", "repvgg-zoo doctor --offline --json")
COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}

Check = Callable[[bool], List[Finding]]

# In the order in which they are told.
CHECKS: Tuple[Tuple[str, Check], ...] = (
    ("Python", python.python),
    ("packages", python.packages),
    ("MegEngine", python.megengine),
    ("GPU", python.gpu),
    ("environment", cache.environment),
    ("registry", cache.registry),
)
# These ask the settings where to look.
PLACES: Tuple[Tuple[str, Check], ...] = (
    ("cache", cache.cache),
    ("disk", cache.disk),
    ("locks", cache.locks),
    ("leftovers", cache.leftovers),
    ("network", cache.network),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--offline", action="store_true", help="ask no mirror and no host")


def run(args: argparse.Namespace) -> int:
    begun = time.monotonic()
    findings = examined((*CHECKS, *PLACES) if settings_hold() else CHECKS, args.offline)
    faults = [one for one in findings if one.status == FAIL]
    facts = {"ok": not faults, "seconds": round(time.monotonic() - begun, 1), "checks": findings}
    show(args, facts, lines(findings))
    return int(bool(faults))


def settings_hold() -> bool:
    """Whether our environment variables make sense; the check of them says what does not."""
    try:
        read_settings()
    except ArgumentError:
        return False
    return True


def examined(checks: Sequence[Tuple[str, Check]], offline: bool) -> List[Finding]:
    """Every check's findings, in the checks' order; a check that breaks is a fault of its own.

    They run at the same time, since some of them wait: for MegEngine's import, for the network.
    """
    found: Dict[str, List[Finding]] = {}

    def one(name: str, check: Check) -> None:
        try:
            found[name] = check(offline)
        except ZooError as error:
            found[name] = [fail(name, error.message, error.hint)]
        except Exception as error:  # whatever is wrong with this machine, the other checks are told
            found[name] = [fail(name, f"could not be looked at: {type(error).__name__}: {error}")]

    threads = [threading.Thread(target=one, args=check, daemon=True) for check in checks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [finding for name, _ in checks for finding in found[name]]


def lines(findings: Sequence[Finding]) -> List[str]:
    """One line for each finding, with what to type below those that are not right; then the verdict."""
    width = max(len(one.name) for one in findings)
    shown = []
    for one in findings:
        shown.append(f"{paint(f'{one.status:4}', COLOURS[one.status])}  {one.name:{width}}  {one.text}")
        if one.fix:
            shown.append(f"{'':6}{paint('fix', 'cyan')}: {one.fix}")
    faults = sum(one.status == FAIL for one in findings)
    warnings = sum(one.status == WARN for one in findings)
    verdict = f"{count(faults, 'fault')}, {count(warnings, 'warning')}"
    return [*shown, "", paint(verdict, "red" if faults else "yellow" if warnings else "green")]
