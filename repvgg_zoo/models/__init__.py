"""The networks: RepVGG (CVPR 2021) and RepVGGplus, and their blocks."""

from .layers import SEBlock, linear
from .network import Network
from .repvgg import RepVGG, RepVGGBlock
from .repvggplus import RepVGGplus
from .stages import FeatureInfo

__all__ = ["FeatureInfo", "Network", "RepVGG", "RepVGGBlock", "RepVGGplus", "SEBlock", "linear"]
