"""export: a network in a file that other runtimes read, checked before it gets its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Tuple, Union

from numpy.typing import NDArray

from .._arguments import check_choice, check_flag, check_image_size, check_int, check_local_path
from ..checkpoints import Checkpoint
from ..errors import ArgumentError, PathLike
from ..inference.quantized_network import QuantizedNetwork
from .mge import export_mge
from .onnx import export_onnx
from .report import DYNAMIC, INPUTS, TENSORRT, ExportOptions, ExportReport

if TYPE_CHECKING:
    from megengine.module import Module

ImageSize = Union[int, Tuple[int, int], str]
FORMATS: Mapping[str, Callable[[Any, Path, ExportOptions], ExportReport]] = {".onnx": export_onnx, ".mge": export_mge}


def export(
    model: Union[PathLike, Checkpoint, Mapping[str, NDArray[Any]], QuantizedNetwork, Module],
    path: PathLike,
    *,
    batch: Optional[int] = None,
    image_size: Optional[ImageSize] = None,
    input: str = "float32",
    softmax: bool = False,
    deploy: bool = True,
    features_only: bool = False,
    for_x86: bool = False,
    float16: bool = False,
    target: Optional[str] = None,
) -> ExportReport:
    """Write a network as ONNX (``.onnx``, opset 17) or for MegEngine Lite (``.mge``), completely or not at all.

    ``model`` is a name, a checkpoint file, a ``Checkpoint``, arrays, a QuantizedNetwork or a MegEngine network; ONNX
    needs neither MegEngine, except for the last, nor the onnx package. Without ``batch`` the file takes any number of
    images.
    ``image_size`` is one number or (height, width), by default that of the checkpoint; with ``"dynamic"`` images may
    have any size.

    ONNX: the input is called ``input``: float32 (N, C, H, W) as ``preprocess`` returns it, or with ``input="uint8"``
    the pixels (N, H, W, C) in RGB order after resizing and cropping; the checkpoint's color order and normalization are
    then a part of the model. The output is ``logits`` (N, classes), ``probabilities`` with ``softmax``, ``features``
    (N, channels) of a network without a head, or with ``features_only`` one feature map for each stage, ``stage0`` to
    ``stage4``. ``deploy=False`` writes the branches and batch normalizations of the train form, to be trained on
    elsewhere. The weights have the keys of the state dict. A QuantizedNetwork, or the file of one, is written with int8
    weights and uint8 activations (QDQ), or with ``target="tensorrt"`` int8 ones, as TensorRT takes no others: they have
    half as many steps.

    MegEngine: the input is called ``data``, float32 (N, C, H, W); the outputs are called as in ONNX. Any network that
    MegEngine can trace is written, RepVGGs in the deploy form. ``for_x86`` lays the weights out for x86 processors,
    which ties the file to them; ``float16`` stores them in half of the size.

    The file says what is known about the network (variant, classes, preprocessing, license, accuracy), which
    ``repvgg-zoo info`` shows. Before it gets its name it is read again, and run on two images in ONNX Runtime and
    OpenVINO where they are installed, or in MegEngine and MegEngine Lite, and the outputs are compared with our own.
    The report says which checks were made. The same network gives the same bytes.

    Raises ArgumentError, also for a network that cannot be exported and for an ONNX file of more than 2 GiB;
    EquivalenceError if a runtime's outputs differ by more than 1e-5 of their scale (float16: 1e-2; int8: one step of
    an activation, 1/255 or, signed, 1/127); FormError for the train form of deploy weights; DependencyError for
    ``.mge`` without MegEngine; what ``fetch`` and ``load_checkpoint`` raise; and OSError from the file system.
    """
    file = _check_path(path)
    options = ExportOptions(
        batch=None if batch is None else check_int("batch", batch, minimum=1),
        image_size=_check_size(image_size),
        input=check_choice("input", input, INPUTS),
        softmax=check_flag("softmax", softmax),
        deploy=check_flag("deploy", deploy),
        features_only=check_flag("features_only", features_only),
        for_x86=check_flag("for_x86", for_x86),
        float16=check_flag("float16", float16),
        target=None if target is None else check_choice("target", target, (TENSORRT,)),
    )
    return FORMATS[file.suffix.lower()](model, file, options)


def _check_path(path: PathLike) -> Path:
    file = check_local_path("the path", path)
    if file.suffix.lower() not in FORMATS:
        raise ArgumentError(
            f"cannot tell the format to write from {file.name!r}",
            path=file,
            expected=tuple(FORMATS),
            actual=file.suffix,
            hint=f"end the name in {' or '.join(FORMATS)}; save_checkpoint writes weights alone",
        )
    if not file.parent.is_dir():
        raise ArgumentError(f"{file.parent} is not a folder", path=file, hint="create the folder first")
    return file


def _check_size(image_size: Optional[ImageSize]) -> Any:
    if image_size is None or image_size == DYNAMIC:
        return image_size
    if isinstance(image_size, str):
        expected = f'a number, (height, width), or "{DYNAMIC}"'
        raise ArgumentError(
            f"image_size is {image_size!r}", expected=expected, actual=image_size, hint=f"pass {expected}"
        )
    return check_image_size("image_size", image_size)
