"""The kernels of a configuration, and the fields of all kernels."""

from __future__ import annotations

from typing import Dict, Tuple

from llvmlite import ir as llvm_ir

from .integer_kernels import S16_FIELDS, U8_AMX_FIELDS, U8_FIELDS, add_integer_kernels, integer_fields
from .kernels import FIELDS, MicrokernelConfig, build_module
from .training_kernels import TRAINING_FIELDS, add_training_kernels

ALL_FIELDS: Dict[str, Tuple[str, ...]] = {**FIELDS, **S16_FIELDS, **U8_FIELDS, **U8_AMX_FIELDS, **TRAINING_FIELDS}


def kernel_names(config: MicrokernelConfig) -> Tuple[str, ...]:
    """Return the names of a configuration's kernels."""
    return (*FIELDS, *integer_fields(config), *(TRAINING_FIELDS if config.training else ()))


def build_kernels(config: MicrokernelConfig) -> llvm_ir.Module:
    """Return a module with the kernels of a configuration, and ``run``."""
    module = build_module(config)
    if config.integer_dot:
        add_integer_kernels(module, config)
    if config.training:
        add_training_kernels(module, config)
    return module
