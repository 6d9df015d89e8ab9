"""From a network to a file that other programs run."""
