"""Checkpoints: files of any publisher's format and layout to native arrays, into a network, and back to a file."""

from .layouts import LAYOUTS, Layout
from .load import Checkpoint, LoadReport, load_checkpoint
from .save import save_checkpoint
from .state_dict import load_state

__all__ = ["LAYOUTS", "Checkpoint", "Layout", "LoadReport", "load_checkpoint", "load_state", "save_checkpoint"]
