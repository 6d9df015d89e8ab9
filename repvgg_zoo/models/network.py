"""Network: what ``create`` returns."""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping, Optional, Tuple, Union

import megengine.module as M
import numpy as np
from megengine import Tensor
from numpy.typing import NDArray

from ..checkpoints.metadata import CheckpointMetadata
from ..registry.specs import CheckpointSpec, ModelSpec
from .stages import FeatureInfo

StateDict = Union[Mapping[str, NDArray[Any]], Callable[[str, Tensor], Optional[NDArray[Any]]]]


class Network(M.Module):
    """A MegEngine Module that says what it is; ``create`` returns one. A plugin's may lack ``feature_info``.

    ``spec`` is the variant, ``checkpoint`` what the registry says of its weights, or None for random weights and those
    of a file of yours, and ``metadata`` which preprocessing and classes belong to them; ``create`` sets these.
    ``feature_info`` lists the feature maps of ``extract_features``, ``num_classes`` is 0 without a head.
    """

    spec: ModelSpec
    checkpoint: Optional[CheckpointSpec]
    metadata: CheckpointMetadata
    in_chans: int
    num_classes: int
    features_only: bool
    feature_info: Tuple[FeatureInfo, ...]

    def extract_features(self, x: Tensor) -> Dict[str, Tensor]:
        """Return the feature maps that ``feature_info`` lists, by name."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: StateDict, strict: bool = True) -> None:
        """Load arrays by key as any MegEngine Module does, from any mapping, such as ``Checkpoint.state_dict``.

        The network keeps its dtype, as in torch: numbers of another one are cast, while MegEngine would take over
        float16, and end in an error of its own, or the process, for float64. Raises KeyError for missing and, if
        ``strict``, unexpected keys, and ValueError for shapes; ``create(checkpoint=...)`` checks all before it writes.
        """
        if isinstance(state_dict, Mapping):
            tensors = dict(self.named_tensors())
            state_dict = {key: _cast(array, tensors.get(key)) for key, array in state_dict.items()}
        super().load_state_dict(state_dict, strict=strict)


def _cast(array: Any, tensor: Optional[Tensor]) -> Any:
    """Return numbers with the dtype of the tensor that they are for; int8 of a quantized tensor stays as it is."""
    if tensor is None or np.dtype(tensor.dtype).kind != "f":
        return array
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        return array
    with np.errstate(over="ignore"):
        return array.astype(tensor.dtype, copy=False)
