"""Writing a function in LLVM's language: its builder with loops, vectors, and the named arguments of a kernel."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, List, Sequence, Tuple

from llvmlite import ir

from .winograd import Matrix

LINE = 16  # numbers in a line of the cache
INT32, INT, FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS, INTS = FLOAT.as_pointer(), INT.as_pointer()


class Code:
    """A function being written. ``to`` is LLVM's builder, at the place where the next instruction goes; a vector has
    ``lanes`` numbers."""

    def __init__(
        self, made: ir.Module, lanes: int, name: str, kind: ir.FunctionType, fields: Sequence[str] = ()
    ) -> None:
        self.lanes = lanes
        self.function = ir.Function(made, kind, name=name)
        self.arguments: Sequence[Any] = self.function.args
        self.to = ir.IRBuilder(self.function.append_basic_block())
        self._module = made
        self._vector = ir.VectorType(FLOAT, lanes)
        self._fields = {field: index for index, field in enumerate(fields)}

    def field(self, name: str) -> Any:
        """A number of the kernel's arguments."""
        return self.to.load(self.to.gep(self.arguments[0], [INT(self._fields[name])]))

    def floats(self, name: str) -> Any:
        """A pointer of the kernel's arguments."""
        return self.to.inttoptr(self.field(name), FLOATS)

    def ints(self, name: str) -> Any:
        """A pointer to 64-bit numbers."""
        return self.to.inttoptr(self.field(name), INTS)

    def share(self, total: Any) -> Tuple[Any, Any]:
        """From where to where, of ``total`` things, this thread works."""
        _, thread, threads = self.arguments
        ends = [self.to.mul(total, thread), self.to.mul(total, self.to.add(thread, INT(1)))]
        first, last = (self.to.sdiv(end, threads) for end in ends)
        return first, last

    def split(self, index: Any, size: Any) -> Tuple[Any, Any]:
        """A number in rows of ``size``: which row, and the place in it."""
        return self.to.sdiv(index, size), self.to.srem(index, size)

    @contextmanager
    def loop(
        self, first: Any, last: Any, carried: Sequence[Any] = (), step: int = 1
    ) -> Iterator[Tuple[Any, List[Any]]]:
        """Counts from ``first`` to ``last``. The list has the values carried along; the body puts the next ones in, and
        after the loop it has the last."""
        before = self.to.block
        head, body, after = (self.function.append_basic_block() for _ in range(3))
        self.to.branch(head)
        self.to.position_at_end(head)
        index = self.to.phi(INT)
        index.add_incoming(first, before)
        phis = [self.to.phi(value.type) for value in carried]
        for phi, value in zip(phis, carried):
            phi.add_incoming(value, before)
        self.to.cbranch(self.to.icmp_signed("<", index, last), body, after)
        self.to.position_at_end(body)
        values = list(phis)
        yield index, values
        index.add_incoming(self.to.add(index, INT(step)), self.to.block)
        for phi, value in zip(phis, values):
            phi.add_incoming(value, self.to.block)
        self.to.branch(head)
        self.to.position_at_end(after)
        values[:] = phis

    def at(self, pointer: Any, *terms: Any) -> Any:
        """``pointer`` moved by the sum of the terms."""
        for term in terms:
            pointer = self.to.gep(pointer, [INT(term) if isinstance(term, int) else term])
        return pointer

    def number(self, pointer: Any, index: Any) -> Any:
        return self.to.load(self.at(pointer, index))

    def vector(self, pointer: Any) -> Any:
        return self.to.load(self.to.bitcast(pointer, self._vector.as_pointer()), align=4)

    def put(self, value: Any, pointer: Any) -> None:
        self.to.store(value, self.to.bitcast(pointer, self._vector.as_pointer()), align=4)

    def broadcast(self, scalar: Any) -> Any:
        """A vector with ``scalar`` in each lane."""
        nothing = ir.Constant(self._vector, ir.Undefined)
        one = self.to.insert_element(nothing, scalar, INT32(0))
        return self.to.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(INT32, self.lanes), [0] * self.lanes))

    def constant(self, number: float) -> Any:
        """A vector with ``number`` in each lane."""
        return ir.Constant(self._vector, [number] * self.lanes)

    def multiply_add(self, one: Any, other: Any, added: Any) -> Any:
        return self.to.call(self._intrinsic(f"llvm.fma.v{self.lanes}f32", self._vector, 3), [one, other, added])

    def exponential(self, scalar: Any) -> Any:
        return self.to.call(self._intrinsic("llvm.exp.f32", FLOAT, 1), [scalar])

    def prefetch(self, pointer: Any) -> None:
        """Asks for the line there, for the second level of the cache."""
        name, flags = "llvm.prefetch.p0i8", [INT32(0), INT32(2), INT32(1)]
        place = self.to.bitcast(pointer, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [place.type, *[INT32] * 3])
        function = self._module.globals.get(name) or ir.Function(self._module, kind, name=name)
        self.to.call(function, [place, *flags])

    def floor_of(self, relu: Any) -> Any:
        """The least value that ``at_least`` lets through: 0 with ReLU, else none."""
        zero, least = (ir.Constant(FLOAT, value) for value in (0.0, float("-inf")))
        return self.broadcast(self.to.select(self.to.icmp_signed("!=", relu, INT(0)), zero, least))

    def at_least(self, value: Any, floor: Any) -> Any:
        return self.to.select(self.to.fcmp_ordered("<", value, floor), floor, value)  # NaN stays

    def combination(self, factors: Sequence[float], values: Sequence[Any]) -> Any:
        """The sum of the values, each with its factor."""
        total = None
        for factor, value in sorted(zip(factors, values), key=lambda pair: abs(pair[0]) != 1):
            if factor == 0:
                continue
            if total is None:
                total = value if factor == 1 else self.to.fmul(value, self.constant(factor))
            elif abs(factor) == 1:
                total = self.to.fadd(total, value) if factor == 1 else self.to.fsub(total, value)
            else:
                total = self.multiply_add(value, self.constant(factor), total)
        return total

    def transform(self, matrix: Matrix, values: Sequence[Sequence[Any]]) -> List[List[Any]]:
        """The matrix times the square of vectors times the matrix transposed."""
        half = [[self.combination(factors, column) for column in zip(*values)] for factors in matrix]
        return [[self.combination(factors, row) for factors in matrix] for row in half]

    def _intrinsic(self, name: str, kind: Any, count: int) -> ir.Function:
        known = self._module.globals.get(name)
        return known or ir.Function(self._module, ir.FunctionType(kind, [kind] * count), name=name)
