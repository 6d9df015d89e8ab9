"""BatchPredictor: the callable class for ``map_batches`` of Ray Data, for those whose pipeline is Ray Data's."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

import numpy as np
from numpy.typing import NDArray

from .._arguments import check_int, check_text
from ..errors import ArgumentError, PathLike
from ..image.preprocess import Preprocess
from .samples import as_image


class BatchPredictor:
    """Predict the classes of a batch of Ray Data; pass the class to ``map_batches``, its arguments beside it.

    ::

        images = ray.data.read_webdataset(shards).drop_columns(["json"])
        images.map_batches(BatchPredictor, fn_constructor_args=["RepVGG_A0"], batch_size=16, concurrency=8, num_cpus=1)

    ``column`` is that of the images: encoded files (bytes), or uint8 arrays (H, W, 3) as ``read_images`` returns; it is
    replaced by the columns ``index``, ``label`` and ``probability``, each with the ``topk`` values of an image.

    Ray Data creates the object in an actor's main thread and calls it in another, where MegEngine's eager mode does not
    work: networks that ``compile`` has no kernels for are refused. An image that cannot be read raises, and by Ray's
    default ends the pipeline. A pipeline begins from the start after an interruption, and after a node is lost Ray Data
    itself decides what is computed again; ``repvgg_zoo.run`` has neither limit.

    Raises what ``compile`` raises.
    """

    def __init__(self, model: PathLike, *, column: str = "image", topk: int = 5, batch_size: int = 16) -> None:
        from ..image.preprocess import metadata_of, open_model
        from ..inference.api import compile

        self._column = check_text("column", column)
        self._topk = check_int("topk", topk, minimum=1)
        self._network = compile(model, threads=1, batch_size=batch_size)
        if self._network.backend == "eager":
            raise ArgumentError(
                "Ray Data calls this in a thread in which MegEngine's eager mode does not work",
                actual="eager",
                hint="pass a RepVGG, or use repvgg_zoo.run with engine='ray'",
            )
        metadata = metadata_of(open_model(model))
        assert metadata.preprocessing is not None
        self._metadata = metadata
        self._preprocess = Preprocess(metadata.preprocessing)

    def __call__(self, batch: Dict[str, NDArray[Any]]) -> Dict[str, NDArray[Any]]:
        """Return the batch with the predictions instead of the images."""
        from ..image.labels import class_labels
        from ..image.predict import top_k

        inputs = [self._preprocess(as_image(image)) for image in batch[self._column]]
        logits = self._network(np.stack(inputs)).astype(np.float64)
        names = class_labels(self._metadata, logits.shape[1])
        predictions = [top_k(row, names, self._topk) for row in logits]
        columns: Dict[str, Sequence[List[Any]]] = {
            name: [[getattr(one, name) for one in row] for row in predictions]
            for name in ("index", "label", "probability")
        }
        others = {name: values for name, values in batch.items() if name != self._column}
        return {**others, **{name: np.array(values) for name, values in columns.items()}}
