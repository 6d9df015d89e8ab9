"""The command line ``repvgg-zoo``: one module for each command, imported only when that command runs.

A command's module has four names:

- ``HELP``: what the command does, the first paragraphs of its ``--help``;
- ``EXAMPLES``: command lines that work in an empty folder, in this order, with a fresh cache and no internet;
- ``add_arguments(parser)``: declares its arguments (``--json`` and ``--traceback`` exist already);
- ``run(args) -> Result``: returns its payload, how to render it as text, and the exit code. Errors of
  ``repvgg_zoo.errors`` are not caught: ``main`` reports them and turns them into exit codes.

At its top a module imports only what takes milliseconds; NumPy, MegEngine and the like are imported inside ``run``.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, List, Optional, Sequence, Tuple

from . import errors
from .console import Result, emit, flush, print_text, reserved_stdout
from .parser import COMMANDS, GLOBAL_OPTIONS, PROGRAM, ArgumentParser, command_parser, top_help, unknown_command

__all__ = ["main"]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command line and return its exit code; raises nothing.

    Without arguments it is the process's own, and then nothing else is printed on stdout until the process ends.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with reserved_stdout(until_exit=argv is None), errors.handled(arguments) as outcome:
        try:
            outcome.exit_code = _run(arguments)
        finally:
            flush()  # a closed pipe is noticed here, where it is handled
    return outcome.exit_code


def _run(arguments: List[str]) -> int:
    count = next((index for index, word in enumerate(arguments) if word not in GLOBAL_OPTIONS), len(arguments))
    leading, arguments = arguments[:count], arguments[count:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return _help(arguments[1:] if arguments[:1] == ["help"] else [])
    if arguments[0] in ("-V", "--version"):
        from .. import __version__

        result = Result({"version": __version__}, lambda payload: [f"{PROGRAM} {payload['version']}"])
        emit(result, as_json="--json" in {*leading, *arguments})
        return 0
    module, parser = _command(arguments[0])
    args = parser.parse_args([*leading, *arguments[1:]])
    result = module.run(args)
    emit(result, as_json=args.json)
    for error in result.failures:
        flush()
        if not isinstance(error, Exception):
            raise error  # Ctrl-C
        if not args.json:  # where they are part of the result
            errors.report(error, as_json=False, with_traceback=args.traceback)
    return errors.exit_code(result.failures[0]) if result.failures else int(result.exit_code)


def _help(names: List[str]) -> int:
    if names:
        _command(names[0])[1].print_help()
    else:
        print_text(top_help())
    return 0


def _command(name: str) -> Tuple[Any, ArgumentParser]:
    if name not in COMMANDS:
        raise unknown_command(name)
    module = importlib.import_module(f".commands.{COMMANDS[name].module}", __package__)
    return module, command_parser(name, module)
