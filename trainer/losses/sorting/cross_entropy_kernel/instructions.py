"""Loads, stores and approximate functions in few instructions.

Loads and stores are inline assembly. Triton's coalescing pass takes time that is cubic in the
number of its own memory operations, minutes here, for vector accesses that no layout here allows.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether kernels run in the interpreter, which has no inline assembly."""


@triton.constexpr_function
def log2(size):
    """Return the binary logarithm of a power of two, at compile time."""
    return int(size).bit_length() - 1


@triton.jit
def read(at):
    """Load float32 numbers."""
    if INTERPRETED:
        value = tl.load(at)
    else:
        value = tl.inline_asm_elementwise(
            "ld.global.f32 $0, [$1];", "=f,l", [at.to(tl.int64)], tl.float32, False, 1
        )
    return value


@triton.jit
def write(at, value):
    """Store float32 numbers. Lanes that share an address should store the same number."""
    if INTERPRETED:
        tl.store(tl.broadcast_to(at, value.shape), value)
    else:
        tl.inline_asm_elementwise(
            "st.global.f32 [$1], $2; mov.b32 $0, 0;", "=r,l,f", [at.to(tl.int64), value],
            tl.int32, False, 1,
        )  # fmt: skip


@triton.jit
def write_where(at, value, mask):
    """Store float32 numbers where the mask is set."""
    if INTERPRETED:
        tl.store(tl.broadcast_to(at, value.shape), value, mask=mask)
    else:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.b32 p, $3, 0; @p st.global.f32 [$1], $2; mov.b32 $0, 0; }",
            "=r,l,f,r", [at.to(tl.int64), value, mask.to(tl.int32)], tl.int32, False, 1,
        )  # fmt: skip


@triton.jit
def fast_log2(v):
    """Approximate the binary logarithm of normal numbers by one instruction, to 2^-22."""
    if INTERPRETED:
        result = tl.log2(v)
    else:
        result = tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [v], tl.float32, True, 1
        )
    return result


@triton.jit
def fast_exp2(v):
    """Approximate the power of two by one instruction, to a relative 2^-22."""
    if INTERPRETED:
        result = tl.exp2(v)
    else:
        result = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [v], tl.float32, True, 1
        )
    return result


@triton.jit
def fast_inverse(v):
    """Approximate 1 / v of normal numbers by one instruction, to the last bit."""
    if INTERPRETED:
        result = 1 / v
    else:
        result = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [v], tl.float32, True, 1
        )
    return result


@triton.jit
def atan(v):
    """Approximate the arctangent by Abramowitz and Stegun 4.4.49, to 2e-8."""
    # The polynomial holds for |v| <= 1; larger arguments use atan(v) = pi / 2 - atan(1 / v).
    size = tl.abs(v)
    z = tl.where(size > 1, fast_inverse(tl.maximum(size, 1.0)), size)
    s = z * z
    p = 0.0028662257 * s - 0.0161657367
    p = p * s + 0.0429096138
    p = p * s - 0.0752896400
    p = p * s + 0.1065626393
    p = p * s - 0.1420889944
    p = p * s + 0.1999355085
    p = p * s - 0.3333314528
    angle = z + z * s * p
    angle = tl.where(size > 1, 1.5707963267948966 - angle, angle)
    return tl.where(v < 0, -angle, angle)
