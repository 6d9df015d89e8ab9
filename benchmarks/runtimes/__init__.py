"""The runtimes compared, run with ``-m`` by our interpreter or by the peers', which may be of different versions."""
