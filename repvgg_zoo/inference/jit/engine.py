"""The kernels as machine code for the processor at hand, made by LLVM."""

from __future__ import annotations

import ctypes
import functools
import sys
from types import MappingProxyType
from typing import Any, Callable, Mapping

from llvmlite import binding as llvm

from .kernels import AVX2, AVX512, FIELDS, Registers, module

# Of run: the steps, how many, this thread, of how many, the barrier, and what lets others run.
_RUN = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
)


class MachineCode:
    """``addresses`` of the kernels, and ``run``, which goes through a list of them; valid as long as this lives."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.addresses: Mapping[str, int] = MappingProxyType(
            {name: engine.get_function_address(name) for name in FIELDS}
        )
        self.run: Callable[..., None] = _RUN(engine.get_function_address("run"))


@functools.lru_cache(maxsize=None)
def machine_code(registers: Registers) -> MachineCode:
    """The kernels' code for such registers, made once in a process, which takes some tenths of a second."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    parsed = llvm.parse_assembly(str(module(registers)))
    parsed.verify()
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    engine = llvm.create_mcjit_compiler(parsed, target)
    engine.finalize_object()
    return MachineCode(engine)


def is_supported() -> bool:
    """Whether the processor multiplies and adds vectors in one instruction; without, others are faster."""
    if llvm.get_process_triple().startswith(("aarch64", "arm64")):
        return True
    features = llvm.get_host_cpu_features()
    return bool(features.get("avx2") and features.get("fma"))


def registers_here() -> Registers:
    """Those of this processor; LLVM makes two vectors of NEON of each of AVX2's."""
    return AVX512 if llvm.get_host_cpu_features().get("avx512f") else AVX2


def let_others_run() -> int:
    """The address of the system's function that gives the processor to another thread."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address
