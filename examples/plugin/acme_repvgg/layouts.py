"""The keys of our files: the canonical ones, and those of our head."""

from dataclasses import replace

from repvgg_zoo.checkpoints import LAYOUTS

HEAD = ("linear.hidden", "linear.classes")

two_layer = replace(LAYOUTS["canonical"], head_names={name: name for name in HEAD})
