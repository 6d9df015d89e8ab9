"""repvgg-zoo completion: scripts with which bash, zsh and fish complete command lines, and what they complete.

A script asks the program at each TAB, so there is one implementation, and new commands, options and models are known
without a new script.
"""

from __future__ import annotations

import argparse
import importlib
from contextlib import suppress
from typing import Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..._settings import registry_files
from ...errors import ZooError
from ...registry.api import full_registry
from ...registry.load import load_file, shipped_registry
from ...registry.names import natural_key, normalize_name, strip_family_prefix
from ...registry.plugins import find_plugins
from ...registry.specs import ModelSpec
from ..console import Result, Verbatim
from ..parser import COMMANDS, TOP_OPTIONS, ArgumentParser, command_parser, selected_parser

HELP = """
Prints a script that lets a shell complete commands, options, their values, and
the names of models and checkpoints. For bash, add eval "$(repvgg-zoo completion
bash)" to ~/.bashrc; for zsh, add eval "$(repvgg-zoo completion zsh)" to ~/.zshrc
after compinit; for fish, add repvgg-zoo completion fish | source to
~/.config/fish/config.fish.
"""
EXAMPLES = (
    "repvgg-zoo completion bash > repvgg-zoo.bash",
    "repvgg-zoo completion zsh > _repvgg-zoo",
    "repvgg-zoo completion fish > repvgg-zoo.fish",
)

# Where there is no candidate, the shell completes paths. Words have a colon before them, so that none is an option.
BASH = """\
_repvgg_zoo() {
    local line words=("${COMP_WORDS[@]:1:COMP_CWORD}")
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("${line%% *}")
    done < <("${COMP_WORDS[0]}" completion bash "${words[@]/#/:}" 2>/dev/null)
}
complete -o bashdefault -o default -F _repvgg_zoo repvgg-zoo
"""
ZSH = """\
#compdef repvgg-zoo
_repvgg_zoo() {
    local line
    local -a candidates typed
    typed=("${(@Q)words[2,CURRENT]}")
    while IFS= read -r line; do
        candidates+=("${${line%% *}//:/\\\\:}:${line#* }")
    done < <("${words[1]}" completion zsh "${(@)typed/#/:}" 2>/dev/null)
    if (( $#candidates )); then
        _describe repvgg-zoo candidates
    else
        _files
    fi
}
if [ "$funcstack[1]" = _repvgg_zoo ]; then
    _repvgg_zoo "$@"
else
    compdef _repvgg_zoo repvgg-zoo
fi
"""
FISH = """\
function __repvgg_zoo_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l program $words[1]
    set -e words[1]
    set -l candidates ($program completion fish ":"$words ":$current" 2>/dev/null | string replace ' ' \\t)
    if set -q candidates[1]
        printf '%s\\n' $candidates
    else
        __fish_complete_path "$current"
    end
end
complete -c repvgg-zoo -f -a '(__repvgg_zoo_complete)'
"""
SCRIPTS: Mapping[str, str] = {"bash": BASH, "zsh": ZSH, "fish": FISH}


class Candidate(NamedTuple):
    """A word that may stand at the cursor, and what it means."""

    word: str
    meaning: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=tuple(SCRIPTS), metavar="SHELL", help="bash, zsh or fish")
    # For the scripts: the words after the program's name, up to the cursor, each after a colon.
    parser.add_argument("words", nargs="*", metavar="WORD", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> Result:
    if not args.words:
        script = SCRIPTS[args.shell]
        return Result({"shell": args.shell, "script": script}, lambda _: map(Verbatim, script.rstrip("\n").split("\n")))
    return Result(
        complete([word[1:] for word in args.words]),
        lambda rows: [Verbatim(f"{row.word} {row.meaning}".rstrip()) for row in rows],
    )


def complete(words: Sequence[str]) -> List[Candidate]:
    """Return what the last word, which may be empty, can be completed to; nothing where a path is expected.

    ``words`` are those after the program's name. An option and its value may be one word with ``=``, or three, as bash
    splits them.
    """
    *before, current = joined(words)
    start = next((index for index, word in enumerate(before) if word not in TOP_OPTIONS), None)
    commands = [Candidate(name, command.summary) for name, command in COMMANDS.items()]
    if start is None or (before[start] == "help" and start == len(before) - 1):
        options = [Candidate(option, meaning) for option, meaning in TOP_OPTIONS.items()]
        return starting_with(current, options if current.startswith("-") else commands)
    command, before = before[start], before[start + 1 :]
    if command not in COMMANDS:
        return []
    parser = command_parser(command, importlib.import_module(f".{COMMANDS[command].module}", __package__))
    selected = selected_parser(parser, before)
    if selected is not parser:
        before = before[before.index(selected.prog.split()[-1]) + 1 :]
    return complete_argument(selected, before, current, splits_equals="=" in words)


def joined(words: Sequence[str]) -> List[str]:
    """Return the words with an option, ``=`` and a value as one, as other shells than bash pass them."""
    result: List[str] = []
    for word in words:
        if result and result[-1].startswith("--") and (word == "=" or result[-1].endswith("=")):
            result[-1] += word
        else:
            result.append(word)
    return result


def complete_argument(
    parser: ArgumentParser, before: Sequence[str], current: str, *, splits_equals: bool
) -> List[Candidate]:
    """Return the candidates for a word of one command or action; ``before`` are those between the two."""
    options = {name: action for action in parser._actions for name in action.option_strings}
    name, equals, value = current.partition("=")
    if equals and name in options and "--" not in before:
        prefix = "" if splits_equals else f"{name}="
        return [row._replace(word=prefix + row.word) for row in starting_with(value, values(options[name], value))]
    previous = options.get(before[-1]) if before else None
    if previous is not None and previous.nargs is None and "--" not in before:
        return starting_with(current, values(previous, current))
    if current.startswith("-") and "--" not in before:
        names = [Candidate(name, meaning(action)) for name, action in options.items() if name.startswith("--")]
        return starting_with(current, [row for row in names if row.word not in before])
    positional = next_positional(parser, options, before)
    return [] if positional is None else starting_with(current, values(positional, current))


def next_positional(
    parser: ArgumentParser, options: Mapping[str, argparse.Action], before: Sequence[str]
) -> Optional[argparse.Action]:
    """Return the positional argument that comes after these words, or None if there are enough."""
    count, is_value = 0, False
    for word in before:
        if not is_value and not word.startswith("-"):
            count += 1
        is_value = word in options and options[word].nargs is None and not is_value
    positionals = [action for action in parser._actions if not action.option_strings]
    for action in positionals:
        if count == 0 or action.nargs in ("+", "*"):
            return action
        count -= 1
    return None


def meaning(action: argparse.Action) -> str:
    """Return the help of an option, in one line."""
    text = "" if action.help in (None, argparse.SUPPRESS) else str(action.help)
    return text % {**vars(action), "prog": ""}


def values(action: argparse.Action, current: str) -> List[Candidate]:
    """Return what an argument takes, by its choices or its metavar; nothing for a path or a number."""
    if isinstance(action, argparse._SubParsersAction):
        return [Candidate(choice.dest, choice.help or "") for choice in action._choices_actions]
    if action.choices is not None:
        return [Candidate(str(choice), "") for choice in action.choices]
    metavar = str(action.metavar)
    if metavar == "CHECK":
        from .doctor import NAMES

        return [Candidate(name, "") for name in NAMES]
    if metavar == "TAG":
        return [Candidate(tag, "") for tag in sorted({c.tag for model in models("") for c in model.checkpoints})]
    return list(model_names(current)) if {"NAME", "PATTERN", "SOURCE"} & set(metavar.split("|")) else []


def model_names(current: str) -> Iterator[Candidate]:
    """Yield the variants, or the checkpoints of the one whose name and dot were typed; namespaces of plugins."""
    variant, dot, _ = current.rpartition(".")
    for model in models(current):
        if not dot:
            yield Candidate(model.name, model.family)
        elif normalize_name(variant) in spellings(model.name):
            for checkpoint in model.checkpoints:
                yield Candidate(checkpoint.name, checkpoint.publisher)
    if "/" not in current:
        for namespace in find_plugins():
            yield Candidate(f"{namespace}/", "names of a plugin")


def models(current: str) -> List[ModelSpec]:
    """Return the variants, those of plugins only if a namespace was typed, as importing a plugin may take long."""
    if "/" in current:
        return list(full_registry().models)
    variants = list(shipped_registry().models)
    for path in registry_files():
        with suppress(ZooError):
            variants += load_file(path).models
    return sorted(variants, key=lambda model: natural_key(model.name))


def spellings(name: str) -> Tuple[str, str]:
    """Return the forms in which a name is compared."""
    normalized = normalize_name(name)
    return normalized, strip_family_prefix(normalized)


def starting_with(current: str, candidates: Sequence[Candidate]) -> List[Candidate]:
    """Return the candidates that start as the current word does, or else as names are compared: a0 for RepVGG_A0."""
    exact = [row for row in candidates if row.word.startswith(current)]
    form = normalize_name(current)
    return exact or [row for row in candidates if any(one.startswith(form) for one in spellings(row.word)) and form]
