"""jit_compile: the kernels as machine code for the host's processor, compiled by LLVM."""

from __future__ import annotations

import ctypes
import functools
import sys
from types import MappingProxyType
from typing import Any, Callable, Mapping

from llvmlite import binding as llvm

from .kernels import AVX2, AVX512, FIELDS, MicrokernelConfig, build_module

# The arguments of run: calls, their number, this thread, the number of threads, the barrier, and sched_yield.
_RUN = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
)


class JitModule:
    """Compiled kernels: their ``addresses`` by name, and ``run``, which executes a list of calls.

    The code is valid as long as the object lives.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.addresses: Mapping[str, int] = MappingProxyType(
            {name: engine.get_function_address(name) for name in FIELDS}
        )
        self.run: Callable[..., None] = _RUN(engine.get_function_address("run"))


@functools.lru_cache(maxsize=None)
def jit_compile(config: MicrokernelConfig) -> JitModule:
    """Compile the kernels, once in a process, which takes some tenths of a second."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(str(build_module(config)))
    module.verify()
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    return JitModule(engine)


def is_supported() -> bool:
    """Whether the processor has fused multiply-add for vectors; without it, other libraries are faster."""
    if llvm.get_process_triple().startswith(("aarch64", "arm64")):
        return True
    features = llvm.get_host_cpu_features()
    return bool(features.get("avx2") and features.get("fma"))


def host_microkernel_config() -> MicrokernelConfig:
    """Return the configuration for this processor; on ARM, LLVM splits AVX2's vectors into two of NEON."""
    return AVX512 if llvm.get_host_cpu_features().get("avx512f") else AVX2


def yield_thread_address() -> int:
    """Return the address of the system's function that gives the processor to another thread."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address
