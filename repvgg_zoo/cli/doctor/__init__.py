"""The checks of ``repvgg-zoo doctor``: functions without arguments that return findings."""
