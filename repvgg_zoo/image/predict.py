"""Predict the classes of images, with names and probabilities."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Iterator, List, Optional, Sequence, Tuple, Union, overload

import numpy as np
from numpy.typing import NDArray

from .._arguments import check_int, check_items, check_text, is_module
from .._cpu import lower_sync_thread_priority
from .._escape import escape
from .._html import html_table
from ..checkpoints import Checkpoint
from ..errors import ArgumentError
from ..registry.specs import CheckpointSpec
from .io import Image
from .labels import Label, class_labels
from .preprocess import Preprocess, metadata_of, open_model

Images = Union[List[Image], Tuple[Image, ...]]


@dataclass(frozen=True)
class Prediction:
    """One predicted class: its index among the logits, its name, and its probability in 0..1.

    ``synset`` is its WordNet synset where it is one of ImageNet's classes. The label of a class whose name is not known
    is "class 3". It may be any text of a file; ``str`` of the prediction is escaped.
    """

    index: int
    label: str
    probability: float
    synset: Optional[str] = None

    def __str__(self) -> str:
        return f"{escape(self.label)} {100 * self.probability:.1f} %"


class Predictions(List[Prediction]):
    """The predictions for one image, most probable first: a list, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        with_synsets = any(prediction.synset for prediction in self)
        rows = ((*_cells(prediction), prediction.synset) if with_synsets else _cells(prediction) for prediction in self)
        header = ("class", "label", "probability", "synset") if with_synsets else ("class", "label", "probability")
        return html_table(f"{len(self)} predictions", header, rows)


def _cells(prediction: Prediction) -> Tuple[int, str, str]:
    return prediction.index, prediction.label, f"{100 * prediction.probability:.1f} %"


@overload
def predict(
    model_or_name: Any, image: Image, *, topk: int = ..., labels: Optional[Sequence[str]] = ...
) -> List[Prediction]: ...
@overload
def predict(
    model_or_name: Any, image: Images, *, topk: int = ..., labels: Optional[Sequence[str]] = ...
) -> List[List[Prediction]]: ...
def predict(
    model_or_name: Any, image: Union[Image, Images], *, topk: int = 5, labels: Optional[Sequence[str]] = None
) -> Union[List[Prediction], List[List[Prediction]]]:
    """Return the ``topk`` most probable classes of an image, most probable first; fewer if there are fewer classes.

    ``model_or_name`` is a name, a file, a Checkpoint, or a network of ``create``, ``compile`` or ``quantize``. A list
    or tuple of images gives a list of such lists. A name, a file or a quantized network is compiled and closed again at
    every call, so for many images pass them all at once, or pass what ``compile`` returns. An image is anything that
    ``preprocess`` accepts, and is preprocessed as it says. A network in training mode runs in eval mode and is put
    back.

    Labels are those of the published checkpoint, or those that ``save_checkpoint`` wrote into the file; a head that is
    not of either has numbered ones. ``labels`` are names of your own.

    Raises ArgumentError for anything that is not an image, a network or a classifier, and what ``compile`` raises for a
    name or a file.

    >>> import numpy as np, repvgg_zoo
    >>> digit = np.zeros((8, 8), np.uint8)
    >>> digit[:, 3:5] = 255
    >>> print(repvgg_zoo.predict("RepVGG_N0", digit)[0].label)
    1
    """
    topk = check_int("topk", topk, minimum=1)
    if labels is not None:
        labels = [check_text("labels", name, "a list of names") for name in check_items("labels", labels)]
    model = open_model(model_or_name)
    metadata = metadata_of(model)
    assert metadata.preprocessing is not None
    to_input = Preprocess(metadata.preprocessing)
    is_batch = isinstance(image, (list, tuple))
    # Before the network is compiled, so that an image that cannot be read is reported at once.
    images = image if isinstance(image, (list, tuple)) else (image,)
    inputs = [to_input(item)[None] for item in images]
    with _compiled(model) as network:
        lower_sync_thread_priority()
        logits = [_logits(network, x) for x in inputs]
    names = tuple(map(Label, labels or ()))
    for row in logits if labels is not None else ():
        if len(row) != len(names):
            raise ArgumentError(
                f"{len(names)} labels for {len(row)} classes",
                expected=len(row),
                actual=len(names),
                hint="pass one name for each class",
            )
    predictions: List[List[Prediction]] = [
        top_k(row, names or class_labels(metadata, len(row)), topk) for row in logits
    ]
    return predictions if is_batch else predictions[0]


def top_k(logits: NDArray[Any], names: Sequence[Label], k: int) -> Predictions:
    """Return the ``k`` greatest logits as predictions; the names are used if there is one for each class."""
    exp = np.exp(logits - logits.max())
    probabilities = exp / exp.sum()
    labels = names if len(names) == len(logits) else [Label(f"class {index}") for index in range(len(logits))]
    order = np.argsort(-logits, kind="stable")[:k]
    return Predictions(
        Prediction(int(i), labels[i].name, float(probabilities[i]), labels[i].synset or None) for i in order
    )


@contextmanager
def _compiled(model: Any) -> Iterator[Any]:
    """Yield the network; that of a published checkpoint or a file is compiled, and closed afterwards."""
    from ..inference.quantized_network import QuantizedNetwork

    if not isinstance(model, (CheckpointSpec, Checkpoint, QuantizedNetwork)):
        yield model
        return
    from ..inference.api import compile

    with compile(model) as network:
        yield network


def _logits(network: Any, inputs: NDArray[Any]) -> NDArray[Any]:
    """Return the logits of one preprocessed image, float64 (classes,)."""
    in_chans = getattr(network, "in_chans", inputs.shape[1])
    if in_chans != inputs.shape[1]:
        raise ArgumentError(
            f"the network takes {in_chans} channels and its checkpoint's preprocessing makes {inputs.shape[1]}",
            expected=inputs.shape[1],
            actual=in_chans,
            hint="preprocess the input yourself and call the network",
        )
    output = _forward(network, inputs)
    if getattr(output, "ndim", None) != 2 or output.shape[0] != 1:
        raise ArgumentError(
            f"{type(network).__name__} does not return logits",
            expected="an array (1, classes)",
            actual=getattr(output, "shape", type(output).__name__),
            hint="a network that was created with features_only has no head",
        )
    logits = np.asarray(output[0], np.float64)
    if not np.isfinite(logits).all():
        raise ArgumentError("the network's logits are not finite numbers", hint="are its weights damaged?")
    return logits


def _forward(network: Any, inputs: NDArray[Any]) -> Any:
    """Run a network on arrays: a MegEngine Module in eval mode, or anything that takes and returns arrays."""
    if not is_module(network):
        return network(inputs)
    from ..reparam.to_deploy import eval_mode

    tensor = sys.modules["megengine"].Tensor
    weight = next(iter(network.parameters()))
    with eval_mode(network):
        output = network(tensor(inputs, dtype=weight.dtype, device=weight.device))
    return output.numpy() if isinstance(output, tensor) else output
