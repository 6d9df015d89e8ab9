"""The names of the tensors in our files: the zoo's own, and those of our head."""

from dataclasses import replace

from repvgg_zoo.checkpoints import LAYOUTS

HEAD = ("linear.hidden", "linear.classes")

two_layer = replace(LAYOUTS["native"], heads={name: name for name in HEAD})
