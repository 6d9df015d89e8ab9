"""in_parallel: a function of many arrays on all cores, since NumPy lets other threads run while it computes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterable, Iterator, TypeVar

from ._cpu import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

# What is done here waits for memory, which a few cores keep busy.
MOST = 8


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results in the order of the items; an error of the function is raised where its result would come."""
    with ThreadPoolExecutor(min(usable_cores(), MOST)) as pool:
        yield from pool.map(function, items)
