"""repvgg-zoo doctor: check the installation and the settings, and say how to fix them."""

from __future__ import annotations

import argparse
import threading
import time
from typing import Any, Callable, Dict, List, Mapping

from ..._text import pluralize
from ...errors import ArgumentError, ZooError
from ...hub import read_settings
from ..console import Result, style
from ..doctor import cache, network, python, settings
from ..doctor.finding import FAIL, OK, WARN, Finding, fail
from ..parser import closest

HELP = """
Checks Python, MegEngine and the other packages, the environment variables, the
registry and its plugins, the cache, its disk and file locks, mirrors and hosts.
Each problem comes with what to type. "doctor network" shows every mirror,
rewrite rule and host.

Exit code 1 if a check fails; warnings do not count.
"""
EXAMPLES = ("repvgg-zoo doctor", "repvgg-zoo doctor --offline --json", "repvgg-zoo doctor network")
COLORS = {OK: "green", WARN: "yellow", FAIL: "red"}

Check = Callable[[], List[Finding]]

# In the order of the output.
CHECKS: Mapping[str, Check] = {
    "python": python.check_python,
    "packages": python.check_packages,
    "megengine": python.check_megengine,
    "gpu": python.check_gpu,
    "environment": settings.check_environment,
    "registry": settings.check_registry,
    "files": settings.check_bundled_files,
}
# These read the settings, and are skipped if an environment variable has an invalid value.
CHECKS_WITH_SETTINGS: Mapping[str, Check] = {
    "cache": cache.check_cache,
    "disk": cache.check_disk,
    "locks": cache.check_locks,
    "downloads": cache.check_unfinished_downloads,
}
NAMES = (*CHECKS, *CHECKS_WITH_SETTINGS, "network")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = f"which checks to run (default: all): {', '.join(NAMES)}"
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=names)
    parser.add_argument("--offline", action="store_true", help="contact no mirror and no host")


def run(args: argparse.Namespace) -> Result:
    for name in args.checks:
        if name not in NAMES:
            close = closest(name, NAMES)
            hint = f"did you mean {close}?" if close else f"the checks are {', '.join(NAMES)}"
            raise ArgumentError(f"{name!r} is not a valid check", expected=NAMES, actual=name, hint=hint)
    start = time.monotonic()
    findings = run_checks(select_checks(args))
    failed = any(finding.status == FAIL for finding in findings)
    payload = {"ok": not failed, "seconds": round(time.monotonic() - start, 1), "checks": findings}
    return Result(payload, render, int(failed))


def select_checks(args: argparse.Namespace) -> Dict[str, Check]:
    """Return the checks to run; raise ArgumentError if all of them need settings that are not valid."""
    checks = dict(CHECKS)
    try:
        read_settings()
    except ArgumentError:
        if args.checks and not checks.keys() & set(args.checks):
            raise
    else:
        checks.update(CHECKS_WITH_SETTINGS)
        checks["network"] = lambda: network.check_network(offline=args.offline, detailed="network" in args.checks)
    return {name: check for name, check in checks.items() if not args.checks or name in args.checks}


def run_checks(checks: Mapping[str, Check]) -> List[Finding]:
    """Return the findings of all checks, in their order; a check that raises is a failure of its own.

    They run in parallel, since some of them wait: for MegEngine's import, or for the network.
    """
    findings: Dict[str, List[Finding]] = {}

    def run_check(name: str, check: Check) -> None:
        try:
            findings[name] = check()
        except ZooError as error:
            findings[name] = [fail(name, error.message, error.hint)]
        except Exception as error:  # one broken check does not stop the others
            findings[name] = [fail(name, f"could not be checked: {type(error).__name__}: {error}")]

    threads = [threading.Thread(target=run_check, args=item, daemon=True) for item in checks.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [finding for name in checks for finding in findings[name]]


def render(payload: Mapping[str, Any]) -> List[str]:
    """Return a line for each finding with its fix below it, then the counts."""
    findings = payload["checks"]
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        status = style(f"{finding.status:4}", COLORS[finding.status])
        lines.append(f"{status}  {finding.name:{width}}  {finding.text}")
        if finding.fix:
            lines.append(f"{'':6}{style('fix', 'cyan')}: {finding.fix}")
    failures = sum(finding.status == FAIL for finding in findings)
    warnings = sum(finding.status == WARN for finding in findings)
    counts = f"{pluralize(failures, 'failure')}, {pluralize(warnings, 'warning')}"
    return [*lines, "", style(counts, "red" if failures else "yellow" if warnings else "green")]
