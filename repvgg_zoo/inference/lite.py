"""One dumped graph in MegEngine Lite: options, threads, and the algorithms that were chosen for it."""

from __future__ import annotations

import tempfile
import threading
from contextlib import suppress
from ctypes import c_char_p
from pathlib import Path
from typing import Any, List, Optional, Tuple, Union

import megengine
import numpy as np
from megengine.core._imperative_rt.core2 import _clear_algorithm_cache
from megengine.core._imperative_rt.utils import Logger
from numpy.typing import NDArray

from .._cpu import cpu_facts
from .graph import INPUT

# The table of algorithms is of the whole process: set before a network is loaded and read at its first run. What
# oneDNN prepares at a first run it keeps in a map without a lock. So one network is compiled at a time.
BUILDING = threading.Lock()


def obstacle() -> Optional[str]:
    """Why Lite can run nothing here, or None if it can.

    On AMD's processors with AVX-512 (seen on Zen 4) the oneDNN inside of MegEngine 1.13 fails to write its code for any
    convolution that is laid out for the CPU's lanes, and ends the whole process ("bad err=45 in Xbyak::Error"); no
    setting keeps it from AVX-512. On Intel's (seen on Cascade Lake) it works. This is asked first, since importing Lite
    takes half a second.
    """
    if _ends_the_process():
        return "MegEngine Lite fails on AMD's processors with AVX-512"
    try:
        import megenginelite  # noqa: F401
    except (ImportError, OSError):
        return "MegEngine Lite is missing"
    return None


def _ends_the_process() -> bool:
    facts = cpu_facts()
    if "flags" in facts:
        return "avx512f" in facts["flags"].split() and facts.get("vendor_id") != "GenuineIntel"
    with suppress(ImportError, OSError):
        from llvmlite import binding  # knows other systems than Linux

        is_amd = binding.get_host_cpu_name().startswith("znver")
        return is_amd and bool(binding.get_host_cpu_features().get("avx512f"))
    return False


class LiteNetwork:
    """A graph that has run once, so that every algorithm is chosen; not for several threads at once.

    ``shape`` is that of the input. ``algorithms`` is a table: without one, every algorithm is measured, and what was
    chosen is then the attribute ``algorithms``; with one, what is not in it is left to MegEngine and nothing is
    measured. ``input`` and ``outputs`` are the network's own memory. Whoever makes a network holds ``BUILDING``.
    Raises what Lite raises: RuntimeError.
    """

    def __init__(
        self,
        graph: Union[Path, bytes],
        outputs: Tuple[str, ...],
        shape: Tuple[int, ...],
        threads: int,
        preprocess: bool,
        algorithms: Optional[bytes] = None,
    ) -> None:
        import megenginelite as lite  # takes half a second, and is missing on macOS

        options = lite.LiteOptions()
        options.weight_preprocess = int(preprocess)
        options.comp_node_seq_record_level = 1
        network = lite.LiteNetwork(lite.LiteConfig(device_type=lite.LiteDeviceType.LITE_CPU, option=options))
        network.threads_number = threads
        strategy = lite.LiteAlgoSelectStrategy
        # PROFILE with HEURISTIC means: the table's algorithm, else the usual one, and no measuring.
        other = strategy.LITE_ALGO_OPTIMIZED if algorithms is None else strategy.LITE_ALGO_HEURISTIC
        network.set_network_algo_policy(strategy.LITE_ALGO_PROFILE | other)

        self._network: Any = network
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder, "algorithms")
            if algorithms is not None:
                table.write_bytes(algorithms)
            lite.LiteGlobal.set_persistent_cache(str(table))
            # The first run would warn that its shapes might change, which they do not.
            level = Logger.set_log_level(Logger.LogLevel.Error)
            # MegEngine notes, by shape only, how much memory a convolution needs. An algorithm or number of threads
            # that needs more would be given as much, and write beyond it. So notes go neither in nor out.
            _clear_algorithm_cache()
            try:
                _load(network, graph)
                entry = network.get_io_tensor(INPUT)
                entry.set_data_by_copy(np.zeros(shape, np.float32))
                self.run()
                if algorithms is None:
                    lite.LiteGlobal.dump_persistent_cache(str(table))
                    algorithms = table.read_bytes()
            finally:
                _clear_algorithm_cache()
                Logger.set_log_level(level)
                # Lite and MegEngine share the table: MegEngine's own, with the user's profiling, is put back.
                megengine._persistent_cache.reg()
        self.algorithms = algorithms
        self.input: NDArray[Any] = entry.get_data_by_share()
        self.outputs: List[NDArray[Any]] = [network.get_io_tensor(name).get_data_by_share() for name in outputs]

    def run(self) -> None:
        """Computes the outputs from what is in the input."""
        self._network.forward()
        self._network.wait()

    def close(self) -> None:
        """Gives its memory back; its arrays must not be used any more."""
        del self.input, self.outputs
        self._network = None


def _load(network: Any, graph: Union[Path, bytes]) -> None:
    if isinstance(graph, Path):
        # Lite's own Python method reads the file into memory, copies it twice, and keeps the last copy for good.
        network._api.LITE_load_model_from_path(network._network, c_char_p(str(graph).encode()))
    else:
        import io

        network.load(io.BufferedReader(io.BytesIO(graph)))
