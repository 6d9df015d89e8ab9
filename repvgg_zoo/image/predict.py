"""predict: what a network sees in a picture, as names and probabilities."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Iterator, List, Optional, Sequence, Tuple, Union, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from .io import Image
from .labels import Label, labels_of
from .preprocess import checkpoint_of, to_input

Pictures = Union[List[Image], Tuple[Image, ...]]


@dataclass(frozen=True)
class Prediction:
    """One class that a network sees in a picture: its place among the logits, name, probability in 0..1.

    ``synset`` is its WordNet synset where it is one of ImageNet's classes. The label of a class whose name the registry
    does not know is "class 3".
    """

    index: int
    label: str
    probability: float
    synset: Optional[str] = None

    def __str__(self) -> str:
        return f"{self.label} {100 * self.probability:.1f} %"


@overload
def predict(
    model_or_name: Any, image: Image, *, topk: int = ..., labels: Optional[Sequence[str]] = ...
) -> List[Prediction]: ...
@overload
def predict(
    model_or_name: Any, image: Pictures, *, topk: int = ..., labels: Optional[Sequence[str]] = ...
) -> List[List[Prediction]]: ...
def predict(
    model_or_name: Any, image: Union[Image, Pictures], *, topk: int = 5, labels: Optional[Sequence[str]] = None
) -> Union[List[Prediction], List[List[Prediction]]]:
    """The ``topk`` likeliest classes of an image, the likeliest first; fewer if the network has fewer classes.

    A list or tuple of images gives a list of such lists. A name is compiled and closed again at every call, so for many
    pictures pass them all at once, or the network that ``compile`` or ``create`` made. An image is whatever
    ``preprocess`` takes, and is prepared as the checkpoint's publisher does it. A network in training mode is evaluated
    in eval mode and put back. ``labels`` are the names of your own classes, for a network with a head of its own.

    Raises ArgumentError for what is no image, no network or no classifier, and what ``compile`` raises for a name.

    >>> import numpy as np, repvgg_zoo
    >>> one = np.zeros((8, 8), np.uint8)
    >>> one[:, 3:5] = 255
    >>> print(repvgg_zoo.predict("RepVGG_N0", one)[0].label)
    1
    """
    if isinstance(topk, bool) or not isinstance(topk, (int, np.integer)) or topk < 1:
        raise ArgumentError(f"topk is {topk!r}", expected="a whole number from 1 on", actual=topk)
    checkpoint = checkpoint_of(model_or_name)
    several = isinstance(image, (list, tuple))
    # Before the network is compiled, so that a picture that cannot be read is told at once.
    pictures = image if isinstance(image, (list, tuple)) else (image,)
    inputs = [to_input(picture, checkpoint.preprocessing)[None] for picture in pictures]
    with _opened(model_or_name) as network:
        logits = [_logits(network, x) for x in inputs]
    names = labels_of(checkpoint) if labels is None else tuple(map(Label, labels))
    for one in logits if labels is not None else ():
        if len(one) != len(names):
            raise ArgumentError(f"{len(names)} labels for {len(one)} classes", expected=len(one), actual=len(names))
    found = [likeliest(one, names, int(topk)) for one in logits]
    return found if several else found[0]


def likeliest(logits: NDArray[Any], names: Sequence[Label], topk: int) -> List[Prediction]:
    """The ``topk`` greatest logits as predictions; without names where there is not one for each class."""
    powers = np.exp(logits - logits.max())
    shares = powers / powers.sum()
    known = names if len(names) == len(logits) else [Label(f"class {index}") for index in range(len(logits))]
    order = np.argsort(-logits, kind="stable")[:topk]
    return [Prediction(int(i), known[i].name, float(shares[i]), known[i].synset or None) for i in order]


@contextmanager
def _opened(model_or_name: Any) -> Iterator[Any]:
    """The network; for a name a compiled one, which is closed afterwards."""
    if not isinstance(model_or_name, str):
        yield model_or_name
        return
    from ..inference.api import compile

    with compile(model_or_name) as network:
        yield network


def _logits(network: Any, inputs: NDArray[Any]) -> NDArray[Any]:
    """The logits of one prepared image, float64 (classes,)."""
    given = getattr(network, "in_chans", inputs.shape[1])
    if given != inputs.shape[1]:
        raise ArgumentError(
            f"the network takes {given} channels and its checkpoint's preprocessing makes {inputs.shape[1]}",
            expected=inputs.shape[1],
            actual=given,
            hint="prepare the input yourself and call the network",
        )
    output = _evaluated(network, inputs)
    if getattr(output, "ndim", None) != 2 or output.shape[0] != 1:
        raise ArgumentError(
            f"{type(network).__name__} gives no logits",
            expected="an array (1, classes)",
            actual=getattr(output, "shape", type(output).__name__),
            hint="a network that was made with features_only has no head",
        )
    logits = np.asarray(output[0], np.float64)
    if not np.isfinite(logits).all():
        raise ArgumentError("the network's logits are not finite numbers", hint="are its weights damaged?")
    return logits


def _evaluated(network: Any, inputs: NDArray[Any]) -> Any:
    from megengine import Tensor
    from megengine.module import Module

    if not isinstance(network, Module):
        return network(inputs)  # a compiled one: arrays in, arrays out
    from ..reparam.to_deploy import evaluating

    weight = next(iter(network.parameters()))
    with evaluating(network):
        output = network(Tensor(inputs, dtype=weight.dtype, device=weight.device))
    return output.numpy() if isinstance(output, Tensor) else output
