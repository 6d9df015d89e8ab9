"""The networks: RepVGG (CVPR 2021) and RepVGGplus, and the blocks they are made of."""

from .layers import Linear, RepVGGBlock, SEBlock
from .repvgg import FeatureInfo, RepVGG
from .repvggplus import RepVGGplus

__all__ = ["FeatureInfo", "Linear", "RepVGG", "RepVGGBlock", "RepVGGplus", "SEBlock"]
