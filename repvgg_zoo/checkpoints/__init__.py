"""Checkpoints: file formats, publishers' layouts, and putting their arrays into networks."""
