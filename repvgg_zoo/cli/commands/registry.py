"""repvgg-zoo registry: check a registry file, and draft one for a checkpoint file."""

from __future__ import annotations

import argparse
from typing import Any, List, Mapping

from ..._arguments import check_local_path
from ..._text import pluralize
from ..console import Result, Verbatim, style
from ..megengine_setup import default_to_cpu
from ..parser import run_action

HELP = """
A registry file describes variants and checkpoints of your own, in YAML.

check reports everything that is wrong with one, with lines: fields, names that
the zoo has already, and parameters, MACs, sizes and digests, which are counted
again. draft prints one for a checkpoint file: its size, digest, form, layout,
architecture and costs. What a file cannot say is marked by a comment.

Exit code 1 if something is wrong.
"""
EXAMPLES = (
    "repvgg-zoo convert RepVGG_N0 own.safetensors --force",
    "repvgg-zoo registry draft own.safetensors --name acme/RepVGG_N0 > acme.yaml",
    "repvgg-zoo registry check acme.yaml",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    check = actions.add_parser("check", help="report everything that is wrong with a registry file")
    check.add_argument("path", metavar="FILE", help="a registry file in YAML")
    check.set_defaults(action_run=run_check)
    draft = actions.add_parser("draft", help="print a registry file for a checkpoint file")
    draft.add_argument("path", metavar="FILE", help="a checkpoint file")
    draft.add_argument("--name", metavar="NAME", help="the variant's name (default: mine/ and the zoo's name of it)")
    draft.add_argument("--tag", metavar="TAG", default="mine", help="the checkpoint's tag (default: %(default)s)")
    draft.set_defaults(action_run=run_draft)


run = run_action


def run_check(args: argparse.Namespace) -> Result:
    from ...costs import cost
    from ...registry.check import check_registry

    default_to_cpu()  # a plugin's network is built
    report = check_registry(check_local_path("the registry", args.path), cost=cost)
    return Result(report, lambda _: render(report._asdict()), int(bool(report.problems)))


def render(report: Mapping[str, Any]) -> List[str]:
    """Return a line for each problem, as compilers print them, then what was checked."""
    lines: List[str] = []
    for problem in report["problems"]:
        expected = f" (expected: {problem.expected})" if isinstance(problem.expected, str) else ""
        lines.append(f"{report['path']}:{problem.line}: {problem.message}{expected}")
        lines += [f"  hint: {problem.hint}"] if problem.hint else []
    content = f"{pluralize(len(report['variants']), 'variant')}, {pluralize(len(report['checkpoints']), 'checkpoint')}"
    count = len(report["problems"])
    verdict = style(pluralize(count, "problem"), "red") if count else style("ok", "green")
    return [*lines, f"{report['path']}: {content}: {verdict}"]


def run_draft(args: argparse.Namespace) -> Result:
    from ...checkpoints.draft import draft_registry

    text = draft_registry(check_local_path("the file", args.path), name=args.name, tag=args.tag)
    return Result({"path": args.path, "yaml": text}, lambda payload: map(Verbatim, payload["yaml"].splitlines()))
