"""jit_compile: the kernels as machine code for the host's processor, compiled by LLVM."""

from __future__ import annotations

import ctypes
import hashlib
import sys
import threading
import time
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import AbstractSet, Any, Callable, Dict, Iterable, Mapping, Optional

import llvmlite
from llvmlite import binding as llvm

from ..._derived_cache import DerivedCache
from ..._log import get_logger
from .all_kernels import build_kernels, kernel_names
from .code_cache import load_or_compile
from .kernels import AVX2, AVX512, MicrokernelConfig

# The arguments of run: calls, their number, this thread, the number of threads, the barrier, and sched_yield.
_RUN = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
)

SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18  # of Linux on x86-64

_LOCK = threading.Lock()
_modules: Dict[MicrokernelConfig, JitModule] = {}

logger = get_logger(__name__)


class JitModule:
    """Kernels that were loaded: their ``addresses`` by name, and ``run``, which executes a list of calls.

    The code is valid as long as the object lives. ``digest`` is the SHA-256 of the object file.
    """

    def __init__(self, code: bytes, names: Iterable[str]) -> None:
        self.digest = hashlib.sha256(code).hexdigest()
        # LLVM links the object file; nothing is compiled for the module, which is empty.
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self.addresses: Mapping[str, int] = MappingProxyType(
            {name: self._engine.get_function_address(name) for name in names}
        )
        self.run: Callable[..., None] = _RUN(self._engine.get_function_address("run"))


def jit_compile(config: MicrokernelConfig, cache: Optional[DerivedCache] = None) -> JitModule:
    """Return the kernels as machine code, which is loaded once in a process.

    Compiling takes some tenths of a second, which ``cache`` saves the next process.
    """
    with _LOCK:
        if config not in _modules:
            _modules[config] = load_kernels(config, cache)
        return _modules[config]


def load_kernels(config: MicrokernelConfig, cache: Optional[DerivedCache] = None) -> JitModule:
    """Load the kernels from the cache, or compile them."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    code = load_or_compile(lambda: _compile(config), cache, _code_parameters(config))
    return JitModule(code, kernel_names(config))


def _compile(config: MicrokernelConfig) -> bytes:
    """Return an object file with the kernels."""
    start = time.perf_counter()
    module = llvm.parse_assembly(str(build_kernels(config)))
    module.verify()
    code: bytes = _target_machine().emit_object(module)
    logger.info("compiled the kernels in %.2f s", time.perf_counter() - start)
    return code


def _target_machine() -> Any:
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )


def _code_parameters(config: MicrokernelConfig) -> Dict[str, Any]:
    """Return what the machine code depends on beside the modules that generate it."""
    return {
        "config": asdict(config),
        "llvmlite": llvmlite.__version__,
        "llvm": llvm.llvm_version_info,
        "triple": llvm.get_default_triple(),
        "processor": host_processor(),
    }


def is_supported() -> bool:
    """Whether the processor has fused multiply-add for vectors; without it, other libraries are faster."""
    if llvm.get_process_triple().startswith(("aarch64", "arm64")):
        return True
    features = llvm.get_host_cpu_features()
    return bool(features.get("avx2") and features.get("fma"))


def host_processor() -> str:
    """Return LLVM's name of this processor, and its features."""
    return f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"


def host_microkernel_config() -> MicrokernelConfig:
    """Return the configuration for this processor; on ARM, LLVM splits AVX2's vectors into two of NEON."""
    return AVX512 if llvm.get_host_cpu_features().get("avx512f") else AVX2


def host_integer_config() -> MicrokernelConfig:
    """Return the configuration for this processor with the kernels for quantized layers."""
    config = host_microkernel_config()
    features = {name for name, is_there in llvm.get_host_cpu_features().items() if is_there}
    return replace(config, integer_dot=select_integer_dot(features, config.vector_width, allow_amx))


def select_integer_dot(features: AbstractSet[str], vector_width: int, allow_amx: Callable[[], bool]) -> str:
    """Return the best of the instructions that a processor with these features has."""
    if "amx-int8" in features and vector_width == AVX512.vector_width and allow_amx():
        return "tdpbusd"
    vnni, words = ("avx512vnni", "avx512bw") if vector_width == AVX512.vector_width else ("avxvnni", "avx2")
    return "vpdpbusd" if vnni in features else "pmaddwd" if words in features else "plain_s16"


def allow_amx() -> bool:
    """Ask Linux for the use of AMX in this process, and return whether it agrees.

    Without it, the first instruction ends the process, since each thread needs 8 KB more to save its registers.
    """
    if not sys.platform.startswith("linux"):
        return False
    status: int = ctypes.CDLL(None).syscall(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    return status == 0


def host_training_config() -> MicrokernelConfig:
    """Return the configuration for this processor with the kernels of the backward pass."""
    return replace(host_microkernel_config(), training=True)


def yield_thread_address() -> int:
    """Return the address of the system's function that gives the processor to another thread."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address
