"""The kernels of a configuration, and the fields of all kernels."""

from __future__ import annotations

from typing import Dict, Tuple

from llvmlite import ir as llvm_ir

from .int16_kernels import INT16_FIELDS, add_int16_kernels
from .kernels import FIELDS, MicrokernelConfig, build_module
from .training_kernels import TRAINING_FIELDS, add_training_kernels

ALL_FIELDS: Dict[str, Tuple[str, ...]] = {**FIELDS, **INT16_FIELDS, **TRAINING_FIELDS}


def kernel_names(config: MicrokernelConfig) -> Tuple[str, ...]:
    """Return the names of a configuration's kernels."""
    return (*FIELDS, *(INT16_FIELDS if config.int16_dot else ()), *(TRAINING_FIELDS if config.training else ()))


def build_kernels(config: MicrokernelConfig) -> llvm_ir.Module:
    """Return a module with the kernels of a configuration, and ``run``."""
    module = build_module(config)
    if config.int16_dot:
        add_int16_kernels(module, config)
    if config.training:
        add_training_kernels(module, config)
    return module
