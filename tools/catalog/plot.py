"""The plot: top-1 against MACs, parameters and milliseconds, one SVG for each, of which the page shows one.

Coordinates are percent of the figure and offsets pixels, so that it fits any width with letters of one size.
"""

from __future__ import annotations

import math
from typing import Iterable, List, NamedTuple, Optional, Sequence, Tuple

from repvgg_zoo.cli.commands.list import format_count
from repvgg_zoo.registry.specs import IMAGENET, ModelSpec

from .html import element, label, link, page, void
from .records import Setting

LEFT, RIGHT, TOP, BOTTOM = 9.0, 96.0, 8.0, 87.0  # where the axes are
NARROW = (340, 380)  # pixels of the figure on a phone, where its letters are closest to one another
LETTER = (6.6, 12.0)  # width and height
# Where a name may stand beside its point: pixels to the right, pixels down, and which end is there.
PLACES = ((8, 4, "start"), (-8, 4, "end"), (0, -9, "middle"), (0, 18, "middle"), (7, -5, "start"), (7, 13, "start"))


class Point(NamedTuple):
    """A variant's value on both axes; ``series`` is a precision, and ``text`` a label with both values."""

    variant: str
    series: str
    x: float
    y: float
    text: str


class View(NamedTuple):
    """One horizontal axis and its points; ``note`` is HTML."""

    key: str
    title: str
    axis: str
    note: str
    points: Tuple[Point, ...]


def plot(models: Sequence[ModelSpec], settings: Sequence[Setting]) -> str:
    """Return the figure: the choice of an axis, and a view for each, all but the first hidden."""
    drawn = [view for view in views(models, settings) if view.points]
    choices = [
        element(
            "label",
            void("input", type="radio", name="catalog-view", value=view.key, checked=index == 0),
            f" {view.title}",
        )
        for index, view in enumerate(drawn)
    ]
    body = [
        element("fieldset", element("legend", label("Top-1 against")), *choices, class_="catalog-views", hidden=True)
    ]
    body += [
        element("div", draw(view), element("p", view.note), data_view=view.key, hidden=index > 0)
        for index, view in enumerate(drawn)
    ]
    body.append(element("output", label("Hover over a variant for its figures; click it for its page."), hidden=True))
    return element("figure", *body, class_="catalog-plot")


def views(models: Sequence[ModelSpec], settings: Sequence[Setting]) -> List[View]:
    """Return a view for MACs, for parameters, and for each processor and number of threads."""
    macs, params = (
        points(
            models,
            (
                (model.name, "float32", value / unit, model.architecture.image_size, what, (format_count(value),))
                for model, value in ((model, getattr(model, field).deploy) for model in models)
            ),
        )
        for what, unit, field in (
            ("%s: top-1 %s %%, %s MACs", 1e9, "macs"),
            ("%s: top-1 %s %%, %s parameters", 1e6, "params"),
        )
    )
    result = [
        View("macs", label("MACs"), label("MACs of the deploy form for one image, in G"), label(COSTS_NOTE),
             macs),
        View("params", label("parameters"), label("parameters of the deploy form, in M"), label(COSTS_NOTE),
             params),
    ]  # fmt: skip
    for index, setting in enumerate(settings):
        times = (
            (one.variant, one.precision, one.ms, one.image_size, MILLISECONDS, (f"{one.ms:.1f}", one.precision))
            for one in setting.timings
        )
        if setting.threads == 1:
            title = label("ms on %s, 1 thread", setting.cpu)
        else:
            title = label("ms on %s, %s threads", setting.cpu, setting.threads)
        note = f"{label(TIMES_NOTE)} {label('Measured on %s:', ', '.join(setting.dates))} "
        note += link(page("performance"), label("method and other runtimes"))
        result.append(View(f"ms-{index}", title, label("milliseconds for one image"), note, points(models, times)))
    return result


# A variant, a series, the value on the horizontal axis, the image size that it is for, and a text with its values.
Value = Tuple[str, str, float, int, str, Tuple[str, ...]]


def points(models: Sequence[ModelSpec], values: Iterable[Value]) -> Tuple[Point, ...]:
    """Return a point for each value whose accuracy is known at its image size."""
    named = {model.name: model for model in models}
    result = []
    for variant, series, x, image_size, text, figures in values:
        accuracy = accuracy_at(named[variant], image_size) if variant in named else None
        if accuracy is not None:
            described = label(text, variant, f"{accuracy:g}", *figures)
            result.append(Point(variant, series, x, accuracy, described))
    return tuple(result)


def accuracy_at(model: ModelSpec, image_size: int) -> Optional[float]:
    """Return the top-1 on ImageNet-1k for images of this size: of the default checkpoint, or else of the authors."""
    default = None if model.default is None else model.checkpoint(model.default)
    if default is not None and default.dataset == IMAGENET and default.preprocessing.image_size == image_size:
        return default.top1
    return model.paper.top1 if model.paper is not None and model.paper.image_size == image_size else None


MILLISECONDS = "%s: top-1 %s %%, %s ms in %s"
COSTS_NOTE = (
    "Top-1 on ImageNet-1k as the publisher of the default checkpoint states it, or the paper's authors, for images of "
    "the size that the MACs are for."
)
TIMES_NOTE = (
    "Compiled by repvgg_zoo.compile, batch 1; circles are float32, squares int8, drawn at the top-1 of the float32 "
    "weights: what int8 costs depends on the calibration."
)


def draw(view: View) -> str:
    """Return the SVG of one view."""
    to_x, x_ticks = logarithmic([point.x for point in view.points])
    to_y, y_ticks = linear([point.y for point in view.points])
    body = []
    for value in x_ticks:
        x = percent(to_x(value))
        body.append(void("line", x1=x, x2=x, y1=percent(TOP), y2=percent(BOTTOM), class_="grid"))
        body.append(element("text", f"{value:g}", x=x, y=percent(BOTTOM), dy=17, text_anchor="middle"))
    for value in y_ticks:
        y = percent(to_y(value))
        body.append(void("line", x1=percent(LEFT), x2=percent(RIGHT), y1=y, y2=y, class_="grid"))
        body.append(element("text", f"{value:g}", x=percent(LEFT), y=y, dx=-6, dy=4, text_anchor="end"))
    body.append(element("text", view.axis, x="50%", y="100%", dy=-5, text_anchor="middle"))
    body.append(element("text", label("top-1, %"), x=0, y=12))
    front = pareto([point for point in view.points if point.series == "float32"])
    for first, second in zip(front, front[1:]):
        ends = {"x1": to_x(first.x), "y1": to_y(first.y), "x2": to_x(second.x), "y2": to_y(second.y)}
        body.append(void("line", class_="front", **{name: percent(value) for name, value in ends.items()}))
    places = place_names([(to_x(point.x), to_y(point.y), name_of(point)) for point in view.points])
    for point, place in sorted(zip(view.points, places), key=lambda pair: pair[0].variant):
        body.append(mark(point, percent(to_x(point.x)), percent(to_y(point.y)), place))
    return element("svg", *body, role="group", aria_label=view.title)


def mark(point: Point, x: str, y: str, place: Tuple[int, int, str]) -> str:
    """Return a point as a link to its variant."""
    dx, dy, anchor = place
    if point.series == "int8":
        shape = void("rect", x=x, y=y, width=9, height=9)
    else:
        shape = void("circle", cx=x, cy=y, r=5)
    name = element("text", name_of(point), x=x, y=y, dx=dx, dy=dy, text_anchor=anchor) if name_of(point) else ""
    hit = void("circle", cx=x, cy=y, r=12, class_="hit")  # a finger needs more than five pixels
    return link(
        page(f"catalog/{point.variant}"), hit + shape + name, aria_label=point.text, data_variant=point.variant,
        class_=point.series,
    )  # fmt: skip


def name_of(point: Point) -> str:
    """Return what stands beside a point; the float32 point names the variant, at the same height as the int8 one."""
    return "" if point.series == "int8" else point.variant.replace("RepVGG_", "").replace("RepVGGplus_", "")


def place_names(points: Sequence[Tuple[float, float, str]]) -> List[Tuple[int, int, str]]:
    """Return for each point the place of its name that covers the least of other names and points."""
    width, height = NARROW
    marks = [(x * width / 100, y * height / 100) for x, y, _ in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in marks]
    result = []
    for (x, y), (_, _, name) in zip(marks, points):
        boxes = [(place, name_box(x, y, len(name) * LETTER[0], place)) for place in PLACES]
        place, box = min(boxes, key=lambda pair: sum(overlap(pair[1], other) for other in taken) + outside(pair[1]))
        if name:
            taken.append(box)
        result.append(place)
    return result


Box = Tuple[float, float, float, float]


def name_box(x: float, y: float, width: float, place: Tuple[int, int, str]) -> Box:
    dx, dy, anchor = place
    left = x + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return (left, y + dy - LETTER[1] + 2, left + width, y + dy + 2)


def overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def outside(box: Box) -> float:
    """Return a large number for a name that the figure would cut off."""
    left, right = LEFT * NARROW[0] / 100, NARROW[0]
    return 1000.0 * (max(0.0, left - box[0]) + max(0.0, box[2] - right))


def pareto(points: Sequence[Point]) -> List[Point]:
    """Return the points that no other one beats in both values, from left to right."""
    front: List[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def logarithmic(values: Sequence[float]) -> Tuple[Scale, List[float]]:
    """Return a scale that has these values, in percent of the width, and its ticks."""
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.05 * (high - low), 0.02)
    low, high = low - margin, high + margin
    ticks = [digit * 10.0**power for power in range(-3, 7) for digit in (1, 2, 5)]
    scale = Scale(low, high, LEFT, RIGHT, is_logarithmic=True)
    return scale, [tick for tick in ticks if low <= math.log10(tick) <= high]


def linear(values: Sequence[float]) -> Tuple[Scale, List[float]]:
    """Return a scale that has these values, in percent of the height, and its ticks."""
    low, high = math.floor(min(values) / 2) * 2.0, math.ceil(max(values) / 2) * 2.0
    high = max(high, low + 2)
    ticks = [low + 2 * step for step in range(int((high - low) / 2) + 1)]
    return Scale(low, high, BOTTOM, TOP), ticks


class Scale(NamedTuple):
    """From values to percent of the figure."""

    low: float
    high: float
    start: float
    end: float
    is_logarithmic: bool = False

    def __call__(self, value: float) -> float:
        value = math.log10(value) if self.is_logarithmic else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def percent(value: float) -> str:
    return f"{value:.2f}%"
