"""What a shell and a notebook show of our objects: one short line, or a table, with all foreign text escaped.

The kind of fault: the representation of a value is all of its data, some hundred lines of it, or the code of whoever
wrote a file or a registry runs in the notebook.
"""

from __future__ import annotations

import copy
import pickle
from html.parser import HTMLParser

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.checkpoints import LoadReport
from repvgg_zoo.image.predict import Prediction, Predictions
from repvgg_zoo.inference.quantization_report import BlockReport, QuantizationReport
from repvgg_zoo.registry.api import ModelNames
from repvgg_zoo.reparam.equivalence import Difference, EquivalenceReport

HOSTILE = "<script>alert('x')</script>\x1b[2J&amp;"
TAGS = {"table", "caption", "thead", "tbody", "tr", "th", "td"}


def spec(text="RepVGG_X"):
    model = repvgg_zoo.model_info("RepVGG_A0")
    checkpoints = tuple(
        checkpoint._replace(tag=text, variant=text, publisher=text, license=text) for checkpoint in model.checkpoints
    )
    return model._replace(name=text, checkpoints=checkpoints, default=None, notes=text)


def reports(text="stage1.0"):
    difference = Difference(text, 1e-7, 1.0, 1e-7)
    load = LoadReport(loaded=(text, "b"), skipped=((f"{text}2", text),), reshaped=(text,), transposed=("b",))
    block = BlockReport(text, 40.0, float("inf"), text)
    quantization = QuantizationReport(40.0, 0.99, 8, 30, 10, (block, BlockReport(text, 30.0, 20.0, None)))
    return load, EquivalenceReport((difference,), difference), quantization


def objects(text):
    model = spec(text)
    yield from (model, model.checkpoints[0], model._replace(checkpoints=(), no_weights=text), ModelNames([model]))
    yield from reports(text)
    yield Predictions([Prediction(3, text, 0.5, "n01440764"), Prediction(1, "b", 0.25)])


class Table(HTMLParser):
    """Collects the tags and the cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.cells = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        assert not attributes
        self.tags.add(tag)

    def handle_data(self, data):
        self.cells.append(data)


@pytest.mark.parametrize("index", range(8))
def test_a_table_is_nothing_but_cells_whatever_is_in_them(index):
    value = list(objects(HOSTILE))[index]
    table = Table(value._repr_html_())
    assert table.tags <= TAGS
    assert any("<script>" in cell for cell in table.cells)
    assert "\x1b" not in value._repr_html_()


def test_tables_have_the_figures():
    cells = Table(repvgg_zoo.model_info("RepVGG_A0")._repr_html_()).cells
    assert "RepVGG_A0: 8.31 M parameters and 1.36 G MACs" in cells and "36.6 MB" in cells and "72.41" in cells
    small = Table(repvgg_zoo.model_info("RepVGG_N0")._repr_html_()).cells
    assert "RepVGG_N0: 0.22 M parameters and 1.00 M MACs" in small
    load, equivalence, quantization = (Table(report._repr_html_()).cells for report in reports())
    assert {"loaded, reshaped", "loaded, transposed", "skipped", "stage1.0"} <= set(load)
    assert {"end to end", "1.0e-07"} & set(equivalence)
    assert {"exact", "40.0 dB", "int8", "float32"} <= set(quantization)


def test_names_are_a_list_that_a_notebook_shows_as_a_table():
    names = repvgg_zoo.list_models("B1*")
    assert names == ["RepVGG_B1", "RepVGG_B1g2", "RepVGG_B1g4"] and isinstance(names, list)
    assert repr(names) == "['RepVGG_B1', 'RepVGG_B1g2', 'RepVGG_B1g4']"
    for again in (copy.copy(names), pickle.loads(pickle.dumps(names))):
        assert again == names and again._repr_html_() == names._repr_html_()
    names.remove("RepVGG_B1g2")
    cells = Table(names._repr_html_()).cells
    assert "2 variants" in cells and "RepVGG_B1g4" in cells and "RepVGG_B1g2" not in cells


def test_predictions_are_a_list_that_a_notebook_shows_as_a_table():
    images = np.zeros((2, 8, 8), np.uint8)
    first, _ = predictions = repvgg_zoo.predict("RepVGG_N0", list(images), topk=2)
    assert type(predictions) is list and isinstance(first, list)
    assert first == repvgg_zoo.predict("RepVGG_N0", images[0], topk=2)
    cells = Table(first._repr_html_()).cells
    assert "2 predictions" in cells and first[0].label in cells and "synset" not in cells
    assert "50.0 %" in Table(list(objects("cat"))[-1]._repr_html_()).cells


def test_every_object_is_one_short_line():
    checkpoint = repvgg_zoo.load_checkpoint(repvgg_zoo.fetch("RepVGG_N0.digits"))
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True)
    with repvgg_zoo.compile(network) as compiled:
        values = [
            *(repvgg_zoo.model_info(name) for name in repvgg_zoo.list_models()),
            network.checkpoint,
            checkpoint,
            checkpoint.report,
            compiled,
            repvgg_zoo.preprocess(network),
            repvgg_zoo.compare_forms(network, np.zeros((1, 1, 32, 32), np.float32)),
        ]
        for value in values:
            text = repr(value)
            assert len(text) <= 250 and text.isprintable(), text
            assert type(value).__name__ in text
    for value in objects(HOSTILE):
        assert isinstance(value, list) or "\x1b" not in repr(value)
