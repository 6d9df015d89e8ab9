"""KernelBuilder: LLVM's IRBuilder with loops, vectors of float32, and the named arguments of a kernel."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, List, Sequence, Tuple

from llvmlite import ir

from .winograd import Matrix

CACHE_LINE_FLOATS = 16
I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
F32_PTR, I64_PTR = F32.as_pointer(), I64.as_pointer()
KERNEL_TYPE = ir.FunctionType(ir.VoidType(), [I64_PTR, I64, I64])  # arguments, thread, threads


class Loop:
    """A loop that is being emitted.

    ``index`` counts. ``carried`` are the phis of the values that one pass hands to the next; they stay valid after the
    loop, where they are the last ones. The body sets ``next`` to what the next pass begins with.
    """

    def __init__(self, index: Any, carried: Sequence[Any]) -> None:
        self.index = index
        self.carried = carried
        self.next = carried


class KernelBuilder:
    """A function that is being emitted.

    ``ir`` is LLVM's builder, positioned where the next instruction goes. A vector has ``vector_width`` floats.
    """

    def __init__(
        self,
        module: ir.Module,
        vector_width: int,
        name: str,
        function_type: ir.FunctionType,
        fields: Sequence[str] = (),
    ) -> None:
        self.vector_width = vector_width
        self.function = ir.Function(module, function_type, name=name)
        self.args: Sequence[Any] = self.function.args
        self.ir = ir.IRBuilder(self.function.append_basic_block())
        self._module = module
        self._vector = ir.VectorType(F32, vector_width)
        self._fields = {field: index for index, field in enumerate(fields)}

    def arg_i64(self, name: str) -> Any:
        """Load one of the kernel's arguments."""
        return self.ir.load(self.ir.gep(self.args[0], [I64(self._fields[name])]))

    def arg_ptr(self, name: str, element: Any) -> Any:
        """Load one of the kernel's arguments that is the address of elements of this type."""
        return self.ir.inttoptr(self.arg_i64(name), element.as_pointer())

    def arg_f32_ptr(self, name: str) -> Any:
        """Load one of the kernel's arguments that is the address of floats."""
        return self.ir.inttoptr(self.arg_i64(name), F32_PTR)

    def arg_i64_ptr(self, name: str) -> Any:
        """Load one of the kernel's arguments that is the address of 64-bit integers."""
        return self.ir.inttoptr(self.arg_i64(name), I64_PTR)

    def thread_range(self, work_items: Any) -> Tuple[Any, Any]:
        """Return the first work item of this thread and the one after its last (oneDNN's balance211)."""
        _, thread, threads = self.args
        bounds = [self.ir.mul(work_items, thread), self.ir.mul(work_items, self.ir.add(thread, I64(1)))]
        start, stop = (self.ir.sdiv(bound, threads) for bound in bounds)
        return start, stop

    def divmod(self, index: Any, size: Any) -> Tuple[Any, Any]:
        """Return the quotient and the remainder."""
        return self.ir.sdiv(index, size), self.ir.srem(index, size)

    @contextmanager
    def loop(self, start: Any, stop: Any, carried: Sequence[Any] = (), step: int = 1) -> Iterator[Loop]:
        """Emit a loop from ``start`` to ``stop``; ``carried`` are the values that its first pass begins with."""
        before = self.ir.block
        head, body, after = (self.function.append_basic_block() for _ in range(3))
        self.ir.branch(head)
        self.ir.position_at_end(head)
        index = self.ir.phi(I64)
        index.add_incoming(start, before)
        phis = [self.ir.phi(value.type) for value in carried]
        for phi, value in zip(phis, carried):
            phi.add_incoming(value, before)
        self.ir.cbranch(self.ir.icmp_signed("<", index, stop), body, after)
        self.ir.position_at_end(body)
        loop = Loop(index, phis)
        yield loop
        assert len(loop.next) == len(phis)
        index.add_incoming(self.ir.add(index, I64(step)), self.ir.block)
        for phi, value in zip(phis, loop.next):
            phi.add_incoming(value, self.ir.block)
        self.ir.branch(head)
        self.ir.position_at_end(after)

    def offset(self, pointer: Any, *terms: Any) -> Any:
        """Return ``pointer`` moved by the sum of the terms, in elements."""
        for term in terms:
            pointer = self.ir.gep(pointer, [I64(term) if isinstance(term, int) else term])
        return pointer

    def load_i64(self, pointer: Any, index: Any) -> Any:
        return self.ir.load(self.offset(pointer, index))

    def load_vector(self, pointer: Any) -> Any:
        return self.ir.load(self.ir.bitcast(pointer, self._vector.as_pointer()), align=4)

    def store_vector(self, value: Any, pointer: Any) -> None:
        self.ir.store(value, self.ir.bitcast(pointer, self._vector.as_pointer()), align=4)

    def broadcast(self, scalar: Any) -> Any:
        """Return a vector with ``scalar`` in each lane."""
        undefined = ir.Constant(self._vector, ir.Undefined)
        first = self.ir.insert_element(undefined, scalar, I32(0))
        lanes = ir.Constant(ir.VectorType(I32, self.vector_width), [0] * self.vector_width)
        return self.ir.shuffle_vector(first, undefined, lanes)

    def constant(self, number: float) -> Any:
        """Return a vector with ``number`` in each lane."""
        return ir.Constant(self._vector, [number] * self.vector_width)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """Return a * b + c, rounded once."""
        return self.intrinsic(f"llvm.fma.v{self.vector_width}f32", self._vector, [a, b, c])

    def exp(self, scalar: Any) -> Any:
        return self.intrinsic("llvm.exp.f32", F32, [scalar])

    def prefetch(self, pointer: Any) -> None:
        """Prefetch the cache line at ``pointer`` for reading, into the second level of the cache."""
        address = self.ir.bitcast(pointer, I8.as_pointer())
        self.intrinsic("llvm.prefetch.p0i8", ir.VoidType(), [address, I32(0), I32(2), I32(1)])

    def relu_min(self, relu: Any) -> Any:
        """Return the lower bound of a kernel's results: a vector of 0 where ``relu`` is set, else of -inf."""
        zero, lowest = (ir.Constant(F32, value) for value in (0.0, float("-inf")))
        return self.broadcast(self.ir.select(self.ir.icmp_signed("!=", relu, I64(0)), zero, lowest))

    def clamp_min(self, value: Any, lower: Any) -> Any:
        """Return the larger of the two; NaN stays NaN."""
        return self.ir.select(self.ir.fcmp_ordered("<", value, lower), lower, value)

    def linear_combination(self, factors: Sequence[float], values: Sequence[Any]) -> Any:
        """Return the sum of the values, each times its factor, with as few multiplications as possible."""
        total = None
        for factor, value in sorted(zip(factors, values), key=lambda pair: abs(pair[0]) != 1):
            if factor == 0:
                continue
            if total is None:
                total = value if factor == 1 else self.ir.fmul(value, self.constant(factor))
            elif abs(factor) == 1:
                total = self.ir.fadd(total, value) if factor == 1 else self.ir.fsub(total, value)
            else:
                total = self.fma(value, self.constant(factor), total)
        return total

    def two_sided_matmul(self, matrix: Matrix, values: Sequence[Sequence[Any]]) -> List[List[Any]]:
        """Return T X T^T, where T is the matrix and X a square of vectors."""
        left = [[self.linear_combination(factors, column) for column in zip(*values)] for factors in matrix]
        return [[self.linear_combination(factors, row) for factors in matrix] for row in left]

    def intrinsic(self, name: str, result: Any, arguments: Sequence[Any]) -> Any:
        """Call a function of LLVM's, which is declared where it is first used, and return its result."""
        function_type = ir.FunctionType(result, [argument.type for argument in arguments])
        function = self._module.globals.get(name) or ir.Function(self._module, function_type, name=name)
        return self.ir.call(function, arguments)
