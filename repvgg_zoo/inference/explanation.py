"""Explanation: how a compiled network computes each of its layers, and how long that takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import List, Optional, Sequence, Tuple

from .._html import html_table

HEADER = ("layer", "output", "algorithm", "MMACs", "expected ms", "measured ms", "GF/s", "of peak")
TEXT_COLUMNS = 3  # which are aligned to the left
EAGER = "runs in MegEngine's eager mode, which has no plan to explain"


@dataclass(frozen=True)
class ExplainedLayer:
    """A part of a network: a convolution, an SE, the conversion of the images, or the pooling and the head.

    ``output`` is (N, H, W, C), or (N, classes). ``macs`` are the multiply-adds of the definition, for the whole batch;
    ``fmas`` those that the algorithm does, which are fewer with Winograd, in integers for quantized layers.
    ``expected_ms`` is what the cost model expects, of convolutions only. What was measured is None without
    ``measure=True``: ``gflops`` counts two for each of the ``fmas``, and ``peak_share`` is relative to
    ``Explanation.peak_gflops``, that of float32, which integers can exceed.
    """

    name: str
    output: Tuple[int, ...]
    algorithm: str
    macs: int
    fmas: int
    expected_ms: Optional[float] = None
    measured_ms: Optional[float] = None
    gflops: Optional[float] = None
    peak_share: Optional[float] = None


@dataclass(frozen=True)
class Explanation:
    """The parts of a compiled network in the order in which they run; ``str()`` makes a table of them.

    ``layers`` is empty if the network runs in MegEngine's eager mode. ``peak_gflops`` is what the igemm reaches on data
    in the cache, on ``threads`` cores together.
    """

    layers: Tuple[ExplainedLayer, ...]
    threads: int = 1
    peak_gflops: float = 0.0

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(map(len, column)) for column in zip(HEADER, *rows)]
        lines = [
            "  ".join(
                cell.ljust(width) if column < TEXT_COLUMNS else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths))
            ).rstrip()
            for row in ([HEADER, *rows] if rows else [])
        ]
        return "\n".join([*lines, self._caption()])

    def _repr_html_(self) -> str:
        return html_table(self._caption(), HEADER if self.layers else (), self._rows())

    def _caption(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{threads}, the igemm's peak is {self.peak_gflops:.0f} GF/s" if self.layers else f"it {EAGER}"

    def _rows(self) -> List[Sequence[str]]:
        return [_cells(layer) for layer in (*self.layers, _total(self.layers, self.peak_gflops))] if self.layers else []


def with_time(layer: ExplainedLayer, milliseconds: float, peak_gflops: float) -> ExplainedLayer:
    """Return a part with the time that it took."""
    if not layer.fmas or not milliseconds:
        return replace(layer, measured_ms=milliseconds)
    gflops = 2e-6 * layer.fmas / milliseconds
    return replace(layer, measured_ms=milliseconds, gflops=gflops, peak_share=gflops / peak_gflops)


def _total(layers: Sequence[ExplainedLayer], peak_gflops: float) -> ExplainedLayer:
    macs, fmas = (sum(getattr(layer, name) for layer in layers) for name in ("macs", "fmas"))
    expected = sum(layer.expected_ms or 0.0 for layer in layers)
    total = ExplainedLayer("total", (), "", macs, fmas, expected)
    times = [layer.measured_ms for layer in layers if layer.measured_ms is not None]
    return with_time(total, sum(times), peak_gflops) if times else total


def _cells(layer: ExplainedLayer) -> List[str]:
    numbers = (
        (layer.macs / 1e6 or None, "{:.1f}"),
        (layer.expected_ms, "{:.3f}"),
        (layer.measured_ms, "{:.3f}"),
        (layer.gflops, "{:.1f}"),
        (layer.peak_share, "{:.0%}"),
    )
    texts = ("-" if number is None else form.format(number) for number, form in numbers)
    return [layer.name, "x".join(map(str, layer.output)), layer.algorithm, *texts]
