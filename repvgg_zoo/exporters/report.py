"""The options of ``export``, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional, Tuple

from .._escape import escape
from ..checkpoints import CheckpointMetadata
from ..checkpoints.metadata import default_image_size
from ..errors import ArgumentError
from ..registry.specs import ModelSpec

INPUTS = ("float32", "uint8")
TENSORRT = "tensorrt"
DYNAMIC = "dynamic"
CHECK_SIZE = 64  # of the images with which a network for any size is checked if no size is known


class TensorInfo(NamedTuple):
    """Name, NumPy dtype and shape of an input or output; a size that is not fixed is the name that it has."""

    name: str
    dtype: str
    shape: Tuple[Any, ...]


class Check(NamedTuple):
    """One check of a file: its name, the error relative to the outputs' scale if there is one, and a remark."""

    name: str
    error: Optional[float]
    remark: str

    def __str__(self) -> str:
        error = "" if self.error is None else f", relative error {self.error:.1e}"
        return f"{self.name}: {self.remark}{error}"


@dataclass(frozen=True)
class ExportReport:
    """What ``export`` wrote, and how it was checked; ``size`` is in bytes."""

    path: Path
    size: int
    inputs: Tuple[TensorInfo, ...]
    outputs: Tuple[TensorInfo, ...]
    checks: Tuple[Check, ...]

    def __str__(self) -> str:
        lines = [f"{escape(str(self.path))}: {self.size / 1e6:.1f} MB"]
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            lines += [f"{kind:7}{name}: {dtype} ({', '.join(map(str, shape))})" for name, dtype, shape in tensors]
        return "\n".join([*lines, *(f"check  {check}" for check in self.checks)])


class ExportOptions(NamedTuple):
    """The checked arguments of ``export``; ``image_size`` is (height, width), DYNAMIC or None."""

    batch: Optional[int] = None
    image_size: Any = None
    input: str = "float32"
    softmax: bool = False
    deploy: bool = True
    features_only: bool = False
    for_x86: bool = False
    float16: bool = False
    target: Optional[str] = None

    def refuse(self, suffix: str, *names: str) -> None:
        """Raise ArgumentError if one of these arguments, which files of this kind have no place for, was passed."""
        for name in names:
            if getattr(self, name) != self._field_defaults[name]:
                raise ArgumentError(
                    f"{name} cannot be used for a {suffix} file", actual=getattr(self, name), hint=f"leave {name} out"
                )

    def usual_size(
        self, metadata: CheckpointMetadata, spec: Optional[ModelSpec], known: Optional[Tuple[int, int]] = None
    ) -> Tuple[int, int]:
        """Return the size of the images, or that with which a model for any size is checked.

        ``known`` is that of a quantized network's images.
        """
        if self.image_size not in (None, DYNAMIC):
            height, width = self.image_size
            return height, width
        if known is not None:
            return known
        usual = default_image_size(metadata, spec)
        if usual is None and self.image_size is None:
            raise ArgumentError(
                "image_size is needed for a network that repvgg_zoo.create did not return",
                expected=f'a number, (height, width), or "{DYNAMIC}"',
                hint="pass image_size=224, for example",
            )
        return (usual or CHECK_SIZE,) * 2
