"""The command line ``repvgg-zoo``: one module for each command, imported only when that command is chosen.

A command's module offers four names:

- ``HELP``: what the command does, the first paragraphs of its ``--help``;
- ``EXAMPLES``: command lines that work in an empty folder, in this order, with a fresh cache and no internet;
- ``add_arguments(parser)``: declares its arguments (``--json`` and ``--traceback`` are there already);
- ``run(args) -> int``: does the work and gives the exit code. It calls ``output.show`` once for its result, and
  lets errors of ``repvgg_zoo.errors`` pass: ``main`` prints them and turns them into exit codes.

A module imports at its top only what answers in milliseconds; NumPy, MegEngine and the like come inside ``run``.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, List, Optional, Sequence, Tuple

from .parser import COMMANDS, ArgumentParser, command_parser, top_help, unknown_command

__all__ = ["main"]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs one command line (by default the process's own) and gives its exit code; raises nothing."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    from . import errors

    with errors.handled(arguments) as outcome:
        try:
            outcome.code = _run(arguments)
        finally:
            if sys.stdout is not None:  # it is None where the caller has closed it
                sys.stdout.flush()  # a reader that has gone is noticed here, where it is handled
    return outcome.code


def _run(arguments: List[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return _help(arguments[1:] if arguments[:1] == ["help"] else [])
    if arguments[0] in ("-V", "--version"):
        from .. import __version__

        print(f"repvgg-zoo {__version__}")
        return 0
    module, parser = _command(arguments[0])
    code: int = module.run(parser.parse_args(arguments[1:]))
    return code


def _help(names: List[str]) -> int:
    if names:
        _command(names[0])[1].print_help()
    else:
        print(top_help(), end="")
    return 0


def _command(name: str) -> Tuple[Any, ArgumentParser]:
    if name not in COMMANDS:
        raise unknown_command(name)
    module = importlib.import_module(f".commands.{COMMANDS[name].module}", __package__)
    return module, command_parser(name, module)
