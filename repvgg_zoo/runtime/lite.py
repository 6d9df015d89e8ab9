"""One dumped graph in MegEngine Lite: options, threads, the algorithms that were chosen by profiling."""

from __future__ import annotations

import tempfile
import threading
from ctypes import c_char_p
from pathlib import Path
from typing import Any, Optional, Tuple, Union

import megengine
import numpy as np
from megengine.core._imperative_rt.utils import Logger
from numpy.typing import NDArray

from .graph import INPUT
from .plans import Plan

# The table of algorithms is of the whole process: set before a network is loaded and read at its first run. So one
# network is compiled at a time.
BUILDING = threading.Lock()


class LiteNetwork:
    """A graph that has run once, so that every algorithm is chosen; not for several threads at once.

    ``shape`` is that of all inputs. ``algorithms`` is what an earlier network with the same graph, shape, threads and
    machine had chosen, None to profile. Afterwards it is what this one chose. Whoever makes a network holds
    ``BUILDING``. Raises what Lite raises: RuntimeError.
    """

    def __init__(
        self,
        graph: Union[Path, bytes],
        outputs: Tuple[str, ...],
        shape: Tuple[int, ...],
        threads: int,
        plan: Plan,
        algorithms: Optional[bytes] = None,
    ) -> None:
        import megenginelite as lite  # takes half a second, and is missing on macOS

        options = lite.LiteOptions()
        options.weight_preprocess = int(plan.preprocess)
        options.comp_node_seq_record_level = 1
        network = lite.LiteNetwork(lite.LiteConfig(device_type=lite.LiteDeviceType.LITE_CPU, option=options))
        network.threads_number = threads
        strategy = lite.LiteAlgoSelectStrategy
        network.set_network_algo_policy(strategy.LITE_ALGO_PROFILE | strategy.LITE_ALGO_OPTIMIZED)
        if plan.workspace:
            network.set_network_algo_workspace_limit(plan.workspace)

        self._network: Any = network
        self._outputs = outputs
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder, "algorithms")
            if algorithms is not None:
                table.write_bytes(algorithms)
            lite.LiteGlobal.set_persistent_cache(str(table))
            # The first run would warn that its shapes might change, which they do not.
            level = Logger.set_log_level(Logger.LogLevel.Error)
            try:
                _load(network, graph)
                self._input = network.get_io_tensor(INPUT)
                self(np.zeros(shape, np.float32))
                lite.LiteGlobal.dump_persistent_cache(str(table))
                self.algorithms = table.read_bytes()
            finally:
                Logger.set_log_level(level)
                # Lite and MegEngine share the table: MegEngine's own, with the user's profiling, is put back.
                megengine._persistent_cache.reg()

    def __call__(self, x: NDArray[Any]) -> Tuple[NDArray[Any], ...]:
        """Runs on a C-contiguous float32 array of the network's shape; the results are the caller's own."""
        self._input.set_data_by_copy(x)
        self._network.forward()
        self._network.wait()
        return tuple(self._network.get_io_tensor(name).to_numpy().copy() for name in self._outputs)

    def close(self) -> None:
        """Gives its memory back."""
        self._input = self._network = None


def _load(network: Any, graph: Union[Path, bytes]) -> None:
    if isinstance(graph, Path):
        # Lite's own Python method reads the file into memory, copies it twice, and keeps the last copy for good.
        network._api.LITE_load_model_from_path(network._network, c_char_p(str(graph).encode()))
    else:
        import io

        network.load(io.BufferedReader(io.BytesIO(graph)))
