"""run: a thread's share of a list of kernel calls. After each call, the threads wait for one another."""

from __future__ import annotations

from typing import Any, Callable

from llvmlite import ir

from .ir_builder import I64, I64_PTR, KERNEL_TYPE, KernelBuilder

SPIN_COUNT = 2000  # spins at the barrier before a thread calls sched_yield


def emit_run(begin: Callable[..., KernelBuilder]) -> None:
    """Emit ``void run(calls, count, thread, threads, barrier, yield_thread)``.

    ``calls`` has the address of a kernel and that of its arguments for each call. ``barrier`` is two integers on cache
    lines of their own, which begin as zeros: how many threads have arrived, and the generation.
    """
    yield_type = ir.FunctionType(ir.VoidType(), [])
    types = [I64_PTR, I64, I64, I64, I64_PTR, yield_type.as_pointer()]
    b = begin("run", ir.FunctionType(ir.VoidType(), types))
    calls, count, thread, threads, barrier, yield_thread = b.args
    arrivals, generation = barrier, b.offset(barrier, 8)
    with b.loop(I64(0), count) as steps:
        kernel = b.ir.inttoptr(b.load_i64(calls, b.ir.mul(steps.index, I64(2))), KERNEL_TYPE.as_pointer())
        arguments = b.ir.inttoptr(b.load_i64(calls, b.ir.add(b.ir.mul(steps.index, I64(2)), I64(1))), I64_PTR)
        b.ir.call(kernel, [arguments, thread, threads])
        current = b.ir.load_atomic(generation, "acquire", 8)
        ticket = b.ir.atomic_rmw("add", arrivals, I64(1), "acq_rel")
        with b.ir.if_else(b.ir.icmp_signed("==", b.ir.add(ticket, I64(1)), threads)) as (last, others):
            with last:
                b.ir.store_atomic(I64(0), arrivals, "release", 8)
                b.ir.store_atomic(b.ir.add(current, I64(1)), generation, "release", 8)
            with others:
                _spin_until_changed(b, generation, current, yield_thread)
    b.ir.ret_void()


def _spin_until_changed(b: KernelBuilder, address: Any, old: Any, yield_thread: Any) -> None:
    """Emit a loop that reads an integer until it has changed, and calls ``yield_thread`` every SPIN_COUNT reads."""
    before = b.ir.block
    check, yield_, retry, exit_ = (b.function.append_basic_block() for _ in range(4))
    b.ir.branch(check)
    b.ir.position_at_end(check)
    reads = b.ir.phi(I64)
    reads.add_incoming(I64(1), before)
    b.ir.cbranch(b.ir.icmp_signed("!=", b.ir.load_atomic(address, "acquire", 8), old), exit_, retry)
    b.ir.position_at_end(retry)
    next_reads = b.ir.add(reads, I64(1))
    reads.add_incoming(next_reads, retry)
    b.ir.cbranch(b.ir.icmp_signed("==", b.ir.srem(reads, I64(SPIN_COUNT)), I64(0)), yield_, check)
    b.ir.position_at_end(yield_)
    b.ir.call(yield_thread, [])
    reads.add_incoming(next_reads, yield_)
    b.ir.branch(check)
    b.ir.position_at_end(exit_)
