"""pool_features: a network whose outputs are what its head gets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .._arguments import is_module
from ..checkpoints import Checkpoint
from ..checkpoints.load import checkpoint_from_arrays
from ..checkpoints.network_metadata import metadata_of_network
from ..errors import ArgumentError
from ..inference.ir import LinearWeights, weights_from_state_dict
from ..inference.quantized_network import QuantizedNetwork
from ..registry.specs import CheckpointSpec
from ..reparam.fusion import to_form
from ..weights import fetch_weights


def pool_features(model: Any) -> Any:
    """Return the network with the identity as its head, so that its outputs are the pooled features to the last bit.

    ``model`` is a checkpoint of the registry, a Checkpoint with or without a head, a QuantizedNetwork or a Module.
    Raises ArgumentError for anything else, which is compiled already.
    """
    if isinstance(model, QuantizedNetwork):
        head = _identity(model.weights.layers[-1].bias.size)
        return QuantizedNetwork(
            replace(model.weights, head=head),
            model.report,
            image_size=model.image_size,
            spec=model.spec,
            checkpoint=model.checkpoint,
            metadata=model.metadata.without_classes(),
        )
    if isinstance(model, CheckpointSpec):
        checkpoint = fetch_weights(model, deploy=True)
    elif isinstance(model, Checkpoint):
        checkpoint = to_form(model, "deploy")
    elif is_module(model):
        checkpoint = checkpoint_from_arrays(model.state_dict())
        checkpoint = to_form(replace(checkpoint, metadata=metadata_of_network(model)), "deploy")
    else:
        raise ArgumentError(
            f"the head of a {type(model).__name__} cannot be removed",
            expected="a name, a file, a Checkpoint, or what create or quantize returns",
            actual=type(model).__name__,
            hint="pass what it was compiled from",
        )
    trunk = {key: array for key, array in checkpoint.state_dict.items() if not key.startswith("linear.")}
    head = _identity(weights_from_state_dict(trunk).layers[-1].bias.size)
    state_dict = {**trunk, "linear.weight": head.weight, "linear.bias": head.bias}
    return replace(checkpoint, state_dict=state_dict, metadata=checkpoint.metadata.without_classes())


def _identity(channels: int) -> LinearWeights:
    return LinearWeights(np.eye(channels, dtype=np.float32), np.zeros(channels, np.float32))
