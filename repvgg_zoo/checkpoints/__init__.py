"""Checkpoints: files of any publisher's format and layout to native arrays, into a network, and back to a file."""

from .layouts import LAYOUTS, Layout
from .load import Checkpoint, LoadReport, load_checkpoint
from .save import save_checkpoint

__all__ = ["LAYOUTS", "Checkpoint", "Layout", "LoadReport", "load_checkpoint", "save_checkpoint"]
