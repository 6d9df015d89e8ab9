"""match_labels: which class of a network each label of the data is, by name and never by the order of folders."""

from __future__ import annotations

import difflib
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from ..errors import ArgumentError
from ..image.labels import Label

MAX_LISTED = 10
MAX_DIGITS = 9  # of an index
SYNSET_CHARS = 9  # "n02099601"

_Table = Dict[str, Tuple[int, ...]]


def match_labels(labels: Iterable[str], classes: Sequence[Label], num_classes: int, model: str) -> Dict[str, int]:
    """Return the index of the logit of each label.

    ``classes`` are those of the network in the order of its logits, or empty where they are not known. A label is a
    synset, which more text may follow (``n02099601-golden_retriever``); a class name, whose case, dashes and
    underscores do not count where that leaves no doubt; or, unless class names are numbers themselves, an index. Raises
    ArgumentError that lists the labels and the classes if a label is none of these, or the name of several classes.
    """
    return label_matcher(classes, num_classes, model)(labels)


def label_matcher(classes: Sequence[Label], num_classes: int, model: str) -> Callable[[Iterable[str]], Dict[str, int]]:
    """Return ``match_labels`` for these classes, for labels that come one after the other."""
    tables = _tables(classes)
    has_numbers = any(label.name.isdecimal() for label in classes)

    def match(labels: Iterable[str]) -> Dict[str, int]:
        labels = list(dict.fromkeys(labels))
        matches = {label: _indices(label, tables, None if has_numbers else num_classes) for label in labels}
        unknown = [label for label in labels if not matches[label]]
        ambiguous = [label for label in labels if len(matches[label]) > 1]
        if unknown or ambiguous:
            raise _error(labels, unknown, ambiguous, matches, classes, num_classes, model)
        return {label: indices[0] for label, indices in matches.items()}

    return match


def _tables(classes: Sequence[Label]) -> Tuple[_Table, _Table]:
    """Return the classes that each spelling may stand for: synsets and names as they are, and normalized names."""
    tables: Tuple[_Table, _Table] = ({}, {})
    for index, label in enumerate(classes):
        for table, text in zip((*tables[:1] * 2, tables[1]), (label.synset, label.name, _normalize(label.name))):
            if text and index not in table.get(text, ()):
                table[text] = (*table.get(text, ()), index)
    return tables


def _indices(label: str, tables: Tuple[_Table, _Table], num_classes: Optional[int]) -> Tuple[int, ...]:
    exact, normalized = tables
    synset = label[:SYNSET_CHARS] if label[SYNSET_CHARS : SYNSET_CHARS + 1] in ("-", "_", " ") else label
    indices = exact.get(label) or exact.get(synset) or normalized.get(_normalize(label)) or ()
    is_index = not indices and len(label) <= MAX_DIGITS and label.isascii() and label.isdecimal()
    return (int(label),) if is_index and int(label) < (num_classes or 0) else indices


def _normalize(name: str) -> str:
    return " ".join(name.casefold().replace("-", " ").replace("_", " ").split())


def _error(
    labels: List[str],
    unknown: List[str],
    ambiguous: List[str],
    matches: Mapping[str, Tuple[int, ...]],
    classes: Sequence[Label],
    num_classes: int,
    model: str,
) -> ArgumentError:
    names = [f"{label.name} ({label.synset})" if label.synset else label.name for label in classes]
    if not classes:
        known = f"its class names are not known, so labels must be indices from 0 to {num_classes - 1}"
        hint = "pass class_names=, a list or a file with the names in the order of the logits"
    else:
        known = f"its {num_classes} classes: {_listed(names)}"
        hint = "name them as the model does, by class name or synset, or pass class_names= if its own are wrong"
    if unknown:
        close = [
            text for label in unknown[:3] for text in difflib.get_close_matches(label, [c.name for c in classes], 1)
        ]
        problem = f"{len(unknown)} of {len(labels)} labels are not classes of {model}: {_listed(unknown)}"
        hint = f"did you mean {', '.join(map(repr, close))}? {hint}" if close else hint
        if all(label.isdecimal() for label in unknown) and classes:
            hint = f"indices count from 0; {hint}"
    else:
        label = ambiguous[0]
        candidates = " and ".join(f"{index} ({names[index]})" for index in matches[label])
        problem = f"the label {label!r} may be the classes {candidates} of {model}"
        hint = "use synsets or indices for these"
    return ArgumentError(
        f"{problem}; labels of the data: {_listed(labels)}; {known}", expected=names, actual=labels, hint=hint
    )


def _listed(names: Sequence[str]) -> str:
    text = ", ".join(repr(name) for name in names[:MAX_LISTED])
    return text + (f" and {len(names) - MAX_LISTED:,} more" if len(names) > MAX_LISTED else "")
