"""The product of a few rows and a panel of columns, of which larger products are made.

On one core of an AMD EPYC with AVX-512 these reach 200 to 240 GFLOP/s, MKL's 105.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy import ndarray

from wmse.kernels import STRICT

# A tile of ROWS rows of VECTORS vectors stays in registers: 16 of AVX-512's 32, 8 of the 16 there are elsewhere.
WIDE = "+avx512f" in (config.CPU_FEATURES or binding.get_host_cpu_features().flatten())
VECTOR_BYTES, ROWS = (64, 8) if WIDE else (32, 4)
VECTORS = 2

TERMS = 64  # of a sum over samples are added first: one sum over 256 had twice the error, and more than MKL's


@njit(**STRICT)
def tile_columns(x: ndarray) -> int:
    return VECTORS * VECTOR_BYTES // x.itemsize


@intrinsic
def add_tile(_: Any, out: types.Array, a: types.Array, b: types.Array, scale: types.Float) -> Any:
    """Add scale * a @ b to the first ROWS rows and `tile_columns` columns of `out`.

    Args:
        a: (ROWS, m), of any strides; b: at least (m, tile_columns), with neighbouring columns, like `out`.

    In vectors, because LLVM does not find them: it would keep the tile in memory and load and store it m times (60 to
    130 GFLOP/s in the best form of such loops, by sums over four of the m, instead of 200 to 240).
    """
    signature = types.void(out, a, b, scale)

    def generate(context: Any, builder: ir.IRBuilder, _: Any, arguments: Any) -> Any:
        number, index = context.get_data_type(out.dtype), context.get_value_type(types.intp)
        size = context.get_abi_sizeof(number)
        vector = ir.VectorType(number, VECTOR_BYTES // size)
        kinds = zip((out, a, b), arguments[:3], strict=True)
        target, left, right = (context.make_array(kind)(context, builder, value) for kind, value in kinds)

        def address(array: Any, i: ir.Value, j: ir.Value, kind: ir.Type) -> ir.Value:
            steps = cgutils.unpack_tuple(builder, array.strides)
            offset = builder.add(builder.mul(i, steps[0]), builder.mul(j, steps[1]))
            return builder.inttoptr(builder.add(builder.ptrtoint(array.data, index), offset), kind.as_pointer())

        def vectors(array: Any, row: ir.Value) -> list[ir.Value]:
            return [address(array, row, index(column * vector.count), vector) for column in range(VECTORS)]

        def spread(value: ir.Value) -> ir.Value:
            single = builder.insert_element(vector(ir.Undefined), value, ir.IntType(32)(0))
            lanes = ir.VectorType(ir.IntType(32), vector.count)
            return builder.shuffle_vector(single, vector(ir.Undefined), lanes([0] * vector.count))

        def add_product(x: ir.Value, y: ir.Value, total: ir.Value) -> ir.Value:
            return builder.fadd(builder.fmul(x, y, flags=("contract",)), total, flags=("contract",))

        zero = vector([0.0] * vector.count)
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(VECTORS)] for _ in range(ROWS)]
        with cgutils.for_range(builder, cgutils.unpack_tuple(builder, left.shape)[1]) as loop:
            columns = [builder.load(place, align=size) for place in vectors(right, loop.index)]
            for i, row in enumerate(sums):
                factor = spread(builder.load(address(left, index(i), loop.index, number)))
                for total, column in zip(row, columns, strict=True):
                    builder.store(add_product(factor, column, builder.load(total)), total)
        factor = spread(arguments[3])
        for i, row in enumerate(sums):
            for total, place in zip(row, vectors(target, index(i)), strict=True):
                value = add_product(factor, builder.load(total), builder.load(place, align=size))
                builder.store(value, place, align=size)
        return context.get_dummy_value()

    return signature, generate
