"""Checkpoints: from files of any publisher's format and layout to canonical state dicts, and back to files."""

from .layouts import LAYOUTS, Layout
from .load import load_checkpoint
from .metadata import CheckpointMetadata
from .save import save_checkpoint
from .state_dict import Checkpoint, LoadReport

__all__ = ["LAYOUTS", "Checkpoint", "CheckpointMetadata", "Layout", "LoadReport", "load_checkpoint", "save_checkpoint"]
