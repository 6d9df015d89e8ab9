"""QuantizationReport: what quantization costs in accuracy, block by block, on images that it was not calibrated on."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from .._escape import escape
from .._html import html_table

COLUMNS = ("block", "weights", "own SNR", "SNR so far")


class BlockReport(NamedTuple):
    """A block of a quantized network; signal-to-noise ratios are in dB, infinite where nothing differs.

    ``own_snr`` is that of the block's output if only this block were quantized, ``snr`` that of its output in the
    quantized network, where the blocks before it count as well. ``kept_float`` says why the block was not quantized,
    None if it was.
    """

    name: str
    own_snr: float
    snr: float
    kept_float: Optional[str]


class QuantizationReport(NamedTuple):
    """How far a quantized network's outputs are from the float one's.

    ``snr`` is the signal-to-noise ratio of the logits in dB, of the worst output for a network that returns feature
    maps. ``agreement`` is the share of images whose best class is the same (0..1), None without logits. The network was
    calibrated on ``calibration_images`` images, and all figures are of ``test_images`` others. ``blocks`` are in the
    order in which they run. ``str`` is a table.
    """

    snr: float
    agreement: Optional[float]
    weight_bits: int
    calibration_images: int
    test_images: int
    blocks: Tuple[BlockReport, ...]

    def worst(self, count: int = 5) -> Tuple[BlockReport, ...]:
        """Return the quantized blocks with the lowest ``own_snr``, lowest first."""
        quantized = [block for block in self.blocks if block.kept_float is None]
        return tuple(sorted(quantized, key=lambda block: block.own_snr)[:count])

    def __str__(self) -> str:
        rows = [COLUMNS, *map(self._row, self.blocks)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}  {d:>10}" for a, b, c, d in rows]
        by_reason: Dict[str, List[str]] = {}
        for block in self.blocks:
            if block.kept_float is not None:
                by_reason.setdefault(escape(block.kept_float), []).append(escape(block.name))
        reasons = [f"float because {reason}: {', '.join(names)}" for reason, names in by_reason.items()]
        worst = ", ".join(f"{escape(block.name)} ({_decibels(block.own_snr)})" for block in self.worst(3))
        return "\n".join([self.summary(), *lines, *reasons, f"worst quantized blocks: {worst or 'none'}"])

    def __repr__(self) -> str:
        return f"<QuantizationReport: {self.summary()}>"

    def _repr_html_(self) -> str:
        return html_table(self.summary(), COLUMNS, map(self._row, self.blocks))

    def summary(self) -> str:
        """Return one line: how many blocks are quantized, and how accurate the network is."""
        quantized = sum(block.kept_float is None for block in self.blocks)
        agreement = "" if self.agreement is None else f", same class for {100 * self.agreement:.1f} %"
        return (
            f"{quantized} of {len(self.blocks)} blocks in int{self.weight_bits}: {_decibels(self.snr)}{agreement} of"
            f" {self.test_images} images, after calibration on {self.calibration_images} others"
        )

    def _row(self, block: BlockReport) -> Tuple[str, str, str, str]:
        weights = f"int{self.weight_bits}" if block.kept_float is None else "float32"
        return escape(block.name), weights, _decibels(block.own_snr), _decibels(block.snr)


def _decibels(value: float) -> str:
    return "exact" if value == float("inf") else f"{value:.1f} dB"


def to_plain(report: QuantizationReport) -> Any:
    """Return the report as values of JSON, which has no infinity: None is one."""
    blocks = [[block.name, _finite(block.own_snr), _finite(block.snr), block.kept_float] for block in report.blocks]
    return {**report._asdict(), "snr": _finite(report.snr), "blocks": blocks}


def from_plain(value: Any) -> QuantizationReport:
    """Return the report of such values; raise ValueError, TypeError or KeyError for anything else."""
    blocks = tuple(
        BlockReport(_text(name), _number(own), _number(snr), None if reason is None else _text(reason))
        for name, own, snr, reason in value["blocks"]
    )
    agreement = value["agreement"]
    return QuantizationReport(
        _number(value["snr"]),
        None if agreement is None else _number(agreement),
        _count(value["weight_bits"]),
        _count(value["calibration_images"]),
        _count(value["test_images"]),
        blocks,
    )


def _finite(value: float) -> Optional[float]:
    return None if value == float("inf") else value


def _number(value: Any) -> float:
    if value is not None and type(value) not in (int, float):
        raise TypeError(f"{value!r:.40} is not a number")
    return float("inf") if value is None else float(value)


def _count(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r:.40} is not a whole number")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return value
