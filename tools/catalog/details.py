"""The tables of a variant's page: the variant itself, and each of its checkpoints."""

from __future__ import annotations

from typing import Iterable, List, Sequence

from repvgg_zoo.cli.commands.list import dataset, estimated_size, top1_image_size, top1_stated_by
from repvgg_zoo.cli.describe import PREPROCESSING, preprocessing_values
from repvgg_zoo.registry.api import top1
from repvgg_zoo.registry.specs import CheckpointSpec, FileSpec, ModelSpec, PaperResults

from .html import element, escape, label, link, page, table
from .records import Setting
from .table import UNKNOWN, anchor, file_size, load_code, reference, source

PAPER = "https://arxiv.org/abs/2101.03697"


def variant_table(model: ModelSpec, settings: Sequence[Setting]) -> str:
    """Return accuracy, costs and speed of a variant."""
    size = model.architecture.image_size
    rows = [
        [label("Top-1"), accuracy_of(model)],
        [label("Parameters"), label("%s (train form: %s)", f"{model.params.deploy:,}", f"{model.params.train:,}")],
        [label("MACs"), label("%s (train form: %s)", f"{model.macs.deploy:,}", f"{model.macs.train:,}")],
        [label("Input"), label("%s channels; MACs are counted at %s pixels", model.architecture.in_chans, size)],
        [label("Family"), escape(model.family)],
    ]
    for setting in settings:
        times = [f"{one.ms:.1f} ms ({one.precision})" for one in setting.timings if one.variant == model.name]
        if times:
            where = "%s, 1 thread" if setting.threads == 1 else "%s, %s threads"
            values = [setting.cpu] if setting.threads == 1 else [setting.cpu, setting.threads]
            rows.append([label(where, *values), link(page("performance"), escape(", ".join(times)))])
    if model.aliases:
        rows.append([label("Also called"), escape(", ".join(model.aliases))])
    return table((), rows, class_="catalog-details")


def accuracy_of(model: ModelSpec) -> str:
    value, size, by = top1(model), top1_image_size(model), top1_stated_by(model)
    if value is None:
        return label("not published")
    text = label("%s %% on %s at %s pixels, stated by %s", f"{value:g}", dataset(model), size, by)
    if model.paper is not None and model.paper.top1 != value:
        text += f"; {paper(model.paper)}"
    return text


def paper(results: PaperResults) -> str:
    """Return the authors' own result, with its source."""
    text = label("the authors: %s %%", f"{results.top1:g}")
    place = link(PAPER, escape(results.source)) if results.source.startswith("paper") else reference(results.source)
    return f"{text} ({place})"


def checkpoint_tables(model: ModelSpec) -> str:
    """Return a table for each checkpoint; the anchors are those that the catalog links to."""
    parts = []
    for checkpoint in model.checkpoints:
        mark = f" {element('small', label('default'))}" if checkpoint.tag == model.default else ""
        caption = element("p", element("code", escape(checkpoint.name)) + mark, class_="catalog-caption")
        rows = table((), checkpoint_rows(model, checkpoint), class_="catalog-details", aria_label=checkpoint.name)
        parts.append(element("div", caption, rows, id=anchor(checkpoint)))
    return "\n".join(parts)


def checkpoint_rows(model: ModelSpec, checkpoint: CheckpointSpec) -> List[List[str]]:
    file = checkpoint.file
    results = [(label("top-1"), checkpoint.top1), (label("top-5"), checkpoint.top5)]
    stated = ", ".join(f"{name} {value:g} %" for name, value in results if value is not None)
    where = label("on %s at %s pixels", checkpoint.dataset, checkpoint.preprocessing.image_size)
    size = file_size(file.size, estimated_size(model, checkpoint))
    rows = [
        [label("Load"), load_code(model, checkpoint)],
        [label("Accuracy"), f"{stated} {where}" if stated else label("not published")],
        [label("Stated in"), lines(reference(text) for text in checkpoint.provenance)],
        [label("Publisher"), escape(checkpoint.publisher)],
        [label("License"), escape(checkpoint.license)],
        [label("File"), f"{element('code', escape(file.name))}, {size} MB"],
        [label("Encoding"), encoding(checkpoint)],
        [label("Integrity"), integrity(file)],
        [label("Sources"), lines(source(text) for text in file.sources)],
        [label("Preprocessing"), label(PREPROCESSING, *preprocessing_values(checkpoint.preprocessing))],
    ]
    if checkpoint.official_weights:
        rows.insert(4, [label("Weights"), label("those of the paper's authors")])
    if checkpoint.aliases:
        rows.append([label("Also called"), escape(", ".join(checkpoint.aliases))])
    if checkpoint.notes:
        rows.append([label("Notes"), label(checkpoint.notes)])
    return rows


def encoding(checkpoint: CheckpointSpec) -> str:
    return label(f"format %s, layout %s, {checkpoint.form} form", checkpoint.format, checkpoint.layout)


def integrity(file: FileSpec) -> str:
    """Return the digest and what verifying it can find."""
    if file.sha256 is not None:
        return f"SHA-256 {element('code', file.sha256)}: {label('finds damage and tampering')}"
    if file.sha256_prefix is not None:
        return f"SHA-256 {element('code', file.sha256_prefix + '…')}: {label('finds damage, not tampering')}"
    return label("No digest is published: the file is refused unless you allow it.")


def lines(texts: Iterable[str]) -> str:
    return "<br>".join(texts) or UNKNOWN
