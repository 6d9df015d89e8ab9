"""What is compared: run with ``-m`` by our interpreter or by the peers', which need not share a version of Python."""
