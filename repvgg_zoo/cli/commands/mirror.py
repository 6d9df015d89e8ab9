"""repvgg-zoo mirror: the mirrors in force, and a folder that is one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, Optional

from ..._settings import CACHE_DIRS_ENV, MIRROR_ENV, REWRITE_ENV
from ...hub import bundle as bundles
from ...hub import read_settings
from ...hub.sources import redact
from ..console import paint, show, table
from ..doctor import connectivity
from ..parser import run_action
from . import bundle
from .cache import all_checkpoints
from .fetch import add_names

HELP = f"""
show: the mirrors ({MIRROR_ENV}) and rewrite rules ({REWRITE_ENV})
that are in force, the hosts of the registry's sources, and whether they answer.
make: a folder that any static web server can serve as a mirror, and that can be
mounted as a cache. A mirror needs no trust: what it serves is verified.
"""
EXAMPLES = (
    "repvgg-zoo mirror show --offline",
    "repvgg-zoo mirror make zoo-mirror RepVGG_N0",
    'REPVGG_ZOO_MIRROR="$PWD/zoo-mirror" repvgg-zoo mirror show --offline --json',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    shown = actions.add_parser("show", help="what is in force, and whether it answers")
    shown.add_argument("--offline", action="store_true", help="ask nobody")
    shown.set_defaults(action_run=run_show)
    make = actions.add_parser("make", help="make a folder that is a mirror")
    make.add_argument("out", type=Path, metavar="DIR", help="a new folder")
    add_names(make)
    make.set_defaults(action_run=run_make)


run = run_action


def run_show(args: argparse.Namespace) -> int:
    settings = read_settings()
    offline = args.offline or settings.offline
    places = [*connectivity.mirrors(settings), *connectivity.hosts([one.file for one in all_checkpoints()], settings)]
    answers = [] if offline else connectivity.ask(places)
    said = {answer.place: answer for answer in answers}
    facts: Dict[str, Any] = {
        "mirrors": [place.label for place in places if place.kind == "mirror"],
        "rewrites": [{"from": redact(old), "to": redact(new)} for old, new in settings.url_rewrites],
        "read_only_caches": settings.read_only_cache_dirs,
        "offline": offline,
        "places": [
            {
                "kind": place.kind,
                "where": place.label,
                "answers": said[place].ok if place in said else None,
                "text": said[place].text if place in said else "not asked",
                "seconds": round(said[place].seconds, 3) if place in said else None,
            }
            for place in places
        ],
    }
    lines = [f"rewrite {rule['from']} to {rule['to']}" for rule in facts["rewrites"]]
    lines += table(
        ["what", "where", "answer"],
        [[one["kind"], one["where"], answer(one["answers"], one["text"])] for one in facts["places"]],
    )
    if not facts["mirrors"]:
        lines += ["", paint(f"No mirror is set; {MIRROR_ENV}=URL names one.", "dim")]
    show(args, facts, lines)
    return int(any(one.place.kind == "mirror" and not one.ok for one in answers))


def answer(ok: Optional[bool], text: str) -> str:
    """The answer in its colour."""
    return paint(text, {True: "green", False: "red", None: "dim"}[ok])


def run_make(args: argparse.Namespace) -> int:
    path = bundle.packed(args.out, args)
    files = bundle.described(bundles.read_bundle(path))
    lines = [
        *bundle.listing(files),
        f"made {path}",
        f"serve it    python3 -m http.server --directory {path}",
        f"use it      export {MIRROR_ENV}=http://HOST:8000",
        f"or mount it export {CACHE_DIRS_ENV}=/path/to/{path.name}",
    ]
    show(args, {"path": path, "files": files}, lines)
    return 0
