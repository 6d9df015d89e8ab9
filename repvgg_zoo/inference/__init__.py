"""Compiled inference: a network as MegEngine Lite runs it fastest on this machine."""
