"""The table of all checkpoints, and of the variants without one; sorted and filtered by docs/_static/catalog.js."""

from __future__ import annotations

import re
from typing import List, NamedTuple, Optional, Sequence, Tuple

from repvgg_zoo.cli.commands.list import INTEGRITY, checkpoint_to_dict
from repvgg_zoo.registry.names import natural_key
from repvgg_zoo.registry.specs import CheckpointSpec, ModelSpec

from .html import element, escape, label, link, page, table, void

HEADS = (
    "Checkpoint", "Top-1", "Top-5", "Params, M", "MACs, G", "Pixels", "File, MB", "Digest", "License", "Format",
    "Layout", "Publisher", "Load",
)  # fmt: skip
NUMERIC = (1, 2, 3, 4, 5, 6)
UNKNOWN = "–"
REFERENCE = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{7,40}):([^\s()]+)(.*)", re.DOTALL)
ADDRESS = re.compile(r"(https?://[^\s()]+)(.*)", re.DOTALL)


class Control(NamedTuple):
    """A field above the table: which column it filters, and how (min, max, equal)."""

    title: str
    column: int
    test: str
    options: Tuple[str, ...] = ()


def catalog_table(models: Sequence[ModelSpec]) -> str:
    """Return the filters and the table."""
    ordered = sorted(models, key=lambda model: natural_key(model.name))
    rows = [row for model in ordered for row in rows_of(model)]
    publishers = sorted({checkpoint.publisher for model in models for checkpoint in model.checkpoints}, key=str.lower)
    licenses = sorted({checkpoint.license for model in models for checkpoint in model.checkpoints})
    controls = (
        Control(label("Top-1 at least"), HEADS.index("Top-1"), "min"),
        Control(label("M parameters at most"), HEADS.index("Params, M"), "max"),
        Control(label("G MACs at most"), HEADS.index("MACs, G"), "max"),
        Control(label("Digest"), HEADS.index("Digest"), "equal", tuple(INTEGRITY.values())),
        Control(label("License"), HEADS.index("License"), "equal", tuple(licenses)),
        Control(label("Publisher"), HEADS.index("Publisher"), "equal", tuple(publishers)),
    )
    heads = [label(head) for head in HEADS]
    return form(controls) + table(heads, rows, numeric=NUMERIC, class_="catalog", aria_label=label("All checkpoints"))


def form(controls: Sequence[Control]) -> str:
    """Return the fields, hidden where there is no JavaScript to read them."""
    search = void("input", type="search", name="search", data_test="search", autocomplete="off")
    fields = [element("label", label("Search"), " ", search)]
    for control in controls:
        data = {"data_column": control.column, "data_test": control.test}
        if control.options:
            options = [element("option", label("any"), value="")]
            options += [element("option", escape(option)) for option in control.options]
            field = element("select", *options, **data)
        else:
            field = void("input", type="number", min=0, step="any", inputmode="decimal", **data)
        fields.append(element("label", control.title, " ", field))
    fields.append(element("button", label("Reset"), type="button"))
    fields.append(element("output", data_text=label("%s of %s rows", "%n", "%m")))
    return element("form", *fields, class_="catalog-filter", hidden=True)


def rows_of(model: ModelSpec) -> List[List[str]]:
    """Return a variant's rows: one for each checkpoint, or one that says that it has none."""
    if model.checkpoints:
        return [row_of(model, checkpoint) for checkpoint in model.checkpoints]
    cells = dict.fromkeys(HEADS, UNKNOWN)
    cells["Checkpoint"] = link(page(f"catalog/{model.name}"), escape(model.name))
    cells["Publisher"] = label("no weights")
    cells["Params, M"], cells["MACs, G"] = costs(model)
    cells["Pixels"] = str(model.architecture.image_size)
    cells["Load"] = load_code(model, None)
    return [[cells[head] for head in HEADS]]


def row_of(model: ModelSpec, checkpoint: CheckpointSpec) -> List[str]:
    row = checkpoint_to_dict(model, checkpoint)
    address = page(f"catalog/{model.name}") + f"#{anchor(checkpoint)}"
    top1 = number(row["top1"])
    default = f" {element('small', label('default'))}" if row["is_default"] else ""
    return [
        link(address, escape(checkpoint.name)) + default,
        top1 if row["top1"] is None else link(accuracy_source(checkpoint) or address, top1),
        number(row["top5"]),
        *costs(model),
        str(row["image_size"]),
        file_size(row["size"], row["estimated_size"]),
        INTEGRITY[row["integrity"]],
        escape(row["license"]),
        escape(row["format"]),
        escape(row["layout"]),
        escape(row["publisher"]),
        load_code(model, checkpoint),
    ]


def anchor(checkpoint: CheckpointSpec) -> str:
    """Return the id of a checkpoint on its variant's page."""
    return f"checkpoint-{checkpoint.tag}"


def costs(model: ModelSpec) -> Tuple[str, str]:
    """Return parameters in M and MACs in G, with three digits that count."""
    return significant(model.params.deploy / 1e6), significant(model.macs.deploy / 1e9)


def significant(value: float) -> str:
    return f"{value:.{2 if value < 100 else 1}f}" if value >= 0.1 else f"{value:.3g}"


def number(value: Optional[float]) -> str:
    return UNKNOWN if value is None else f"{value:.2f}"


def file_size(size: Optional[int], estimated: int) -> str:
    """Return megabytes; "~" is an estimate from the number of parameters, as few publishers state the size."""
    return f"{'' if size else '~'}{(size or estimated) / 1e6:.0f}"


def load_code(model: ModelSpec, checkpoint: Optional[CheckpointSpec]) -> str:
    """Return the call that creates the network with these weights."""
    if checkpoint is None:
        return element("code", escape(f'create("{model.name}")'))
    return element("code", escape(f'create("{model.name}", pretrained="{checkpoint.tag}")'))


def reference(text: str) -> str:
    """Return where a value was read, as a link where it says a commit or an address."""
    address = reference_address(text)
    if address is None:
        return escape(text)
    match = REFERENCE.fullmatch(text)
    name, rest = (f"{match[1]}: {match[3]}", match[4]) if match else (address, text[len(address) :])
    return link(address, escape(name)) + escape(rest)


def accuracy_source(checkpoint: CheckpointSpec) -> Optional[str]:
    """Return the address of what states the accuracy; a checkpoint's own entries come after its publisher's."""
    stated = [text for text in checkpoint.provenance if "accuracy" in text]
    return reference_address(stated[-1]) if stated else None


def reference_address(text: str) -> Optional[str]:
    match = REFERENCE.fullmatch(text)
    if match:
        return f"https://github.com/{match[1]}/blob/{match[2]}/{match[3]}"
    match = ADDRESS.fullmatch(text)
    return match[1] if match else None


def source(text: str) -> str:
    """Return a source of a file as a link, where a browser can follow it."""
    if text.startswith("gdrive:"):
        return link(f"https://drive.google.com/file/d/{text[len('gdrive:') :]}/view", escape(text))
    return link(text, escape(text)) if text.startswith(("https://", "http://")) else escape(text)
