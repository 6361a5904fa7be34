"""Products made of matmul, permutations and sums: addmm, baddbmm, outer, dot, mv, einsum."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from tgrad.aliasing import as_strided_op
from tgrad.arguments import Number
from tgrad.layout import may_overlap_itself, numel
from tgrad.ops import matmul as products, pointwise as p
from tgrad.ops.reduce import _sum_dtype, sum_op
from tgrad.ops.views import contiguous, permute, reshape, unsqueeze
from tgrad.tensor import Tensor


def _check(name: str, tensors: Sequence[tuple[str, Tensor, int]]) -> None:
    for argument, x, ndim in tensors:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}(): argument '{argument}' must be Tensor, not {type(x).__name__}")
        if x.ndim != ndim:
            raise RuntimeError(f"{name}: {argument} must be a {ndim}D tensor, got {x.ndim}D")


def _plus(name: str, input: Tensor, product: Tensor, beta: Number, alpha: Number) -> Tensor:
    if input.dtype is not product.dtype:
        raise RuntimeError(
            f"{name}: expected input and the product to have one dtype, got {input.dtype!r} and {product.dtype!r}"
        )
    if input.ndim > product.ndim or any(
        n not in (1, to) for n, to in zip(reversed(input.shape), reversed(product.shape), strict=False)
    ):
        raise RuntimeError(
            f"The expanded size of the tensor {list(product.shape)} must match the existing size: {name} cannot expand "
            f"input of sizes {list(input.shape)}"
        )
    if not product.is_floating_point():
        beta, alpha = int(beta), int(alpha)  # as torch has it
    if alpha != 1:
        product = product * alpha
    if beta == 0:  # nan and inf of input do not count
        return product
    return p.add(input if beta == 1 else input * beta, product)


def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Number = 1, alpha: Number = 1) -> Tensor:
    """beta * input + alpha * (mat1 @ mat2).

    Shape: (M, K) and (K, N) give (M, N), to which `input` broadcasts.
    Dtype: the same of all, any but bool; the result has it.
    Raises:
        RuntimeError: a matrix has not two dimensions; shapes or dtypes do not match.
        TypeError: a matrix is no Tensor.
    """
    _check("addmm", (("mat1", mat1, 2), ("mat2", mat2, 2)))
    return _plus("addmm", input, products.mm(mat1, mat2), beta, alpha)


def addmv(input: Tensor, mat: Tensor, vec: Tensor, *, beta: Number = 1, alpha: Number = 1) -> Tensor:
    """beta * input + alpha * (mat @ vec).

    Shape: (M, K) and (K,) give (M,), to which `input` broadcasts.
    Dtype: the same of all, any but bool; the result has it.
    Raises:
        RuntimeError: `mat` is no matrix, or `vec` no vector; shapes or dtypes do not match.
        TypeError: one is no Tensor.
    """
    return _plus("addmv", input, mv(mat, vec), beta, alpha)


def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Number = 1, alpha: Number = 1) -> Tensor:
    """beta * input + alpha * (batch1 @ batch2).

    Shape: (B, M, K) and (B, K, N) give (B, M, N), to which `input` broadcasts.
    Dtype: the same of all, any but bool; the result has it.
    Raises:
        RuntimeError: a batch has not three dimensions; shapes or dtypes do not match.
        TypeError: a batch is no Tensor.
    """
    _check("baddbmm", (("batch1", batch1, 3), ("batch2", batch2, 3)))
    return _plus("baddbmm", input, products.bmm(batch1, batch2), beta, alpha)


def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """The products of each element with each.

    Shape: (N,) and (M,) give (N, M).
    Dtype: the operands' common dtype.
    Raises:
        RuntimeError: an operand is no vector.
        TypeError: an operand is no Tensor.
    """
    _check("outer", (("self", input, 1), ("vec2", vec2, 1)))
    return p.mul(unsqueeze(input, 1), vec2)


def dot(input: Tensor, tensor: Tensor) -> Tensor:
    """The sum of the products of two vectors of one size.

    Shape: two vectors (N,) give a 0-dim tensor.
    Dtype: the same of both, any but bool; the result has it. Half types accumulate in float32.
    Raises:
        RuntimeError: an operand is no vector; the sizes or dtypes differ; the dtype is bool.
    """
    if input.ndim != 1 or tensor.ndim != 1:
        raise RuntimeError(f"1D tensors expected, but got {input.ndim}D and {tensor.ndim}D tensors")
    if input.dtype is not tensor.dtype:
        raise RuntimeError(
            f"dot : expected both vectors to have same dtype, but found {input.dtype!r} and {tensor.dtype!r}"
        )
    return products.matmul(input, tensor)


def mv(input: Tensor, vec: Tensor) -> Tensor:
    """The product of a matrix and a vector.

    Shape: (M, K) and (K,) give (M,).
    Dtype: the same of both, any but bool; the result has it. Half types accumulate in float32.
    Raises:
        RuntimeError: an operand has another number of dimensions; shapes or dtypes do not match.
        TypeError: an operand is no Tensor.
    """
    _check("mv", (("input", input, 2), ("vec", vec, 1)))
    if input.shape[1] != vec.shape[0]:
        raise RuntimeError(f"size mismatch, got input ({input.shape[0]}), mat ({'x'.join(map(str, input.shape))}), vec "
                           f"({vec.shape[0]})")  # fmt: skip
    return products.matmul(input, vec)


# --- einsum ----------------------------------------------------------------------------------------------------------
# Dimensions are numbered: letters by themselves, those of an ellipsis from the right, as negative numbers.
def _parse(equation: str, operands: Sequence[Tensor]) -> tuple[list[list[Any]], list[Any]]:
    """The dimensions of each operand and of the result, by name: letters, and -1, -2, ... for an ellipsis."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        more = "more" if len(terms) < len(operands) else "fewer"
        raise RuntimeError(f"einsum(): {more} operands were provided than specified in the equation")
    names, widest = [], 0
    for i, (term, x) in enumerate(zip(terms, operands, strict=True)):
        before, dots, after = term.partition("...")
        for letter in before + after:
            if letter not in string.ascii_letters:
                raise RuntimeError(
                    f"einsum(): invalid subscript given at operand {i}: '{letter}', subscripts must be in [a-zA-Z]"
                )
        extra = x.ndim - len(before + after)
        if extra < 0 or (extra and not dots):
            raise RuntimeError(
                f"einsum(): the number of subscripts in the equation ({len(before + after)}) does not match the number "
                f"of dimensions ({x.ndim}) for operand {i}"
                + ("" if dots else " and no ellipsis was given")
            )
        names.append([*before, *range(-extra, 0), *after])
        widest = max(widest, extra)
    every = [n for term in names for n in term]
    if arrow:
        before, dots, after = right.partition("...")
        out: list[Any] = [*before, *(range(-widest, 0) if dots else ()), *after]
        for n in before + after:
            if n not in every:
                raise RuntimeError(
                    f"einsum(): output subscript {n} does not appear in the equation for any input operand"
                )
            if out.count(n) > 1:
                raise RuntimeError(f"einsum(): output subscript {n} appears more than once in the output")
    else:
        once = sorted({n for n in every if isinstance(n, str) and every.count(n) == 1})
        out = [*range(-widest, 0), *once]
    return names, out


def _diagonals(x: Tensor, names: list[Any]) -> tuple[Tensor, list[Any]]:
    """x with each repeated name's dimensions replaced by their diagonal."""
    kept = list(dict.fromkeys(names))
    if len(kept) == len(names):
        return x, names
    if may_overlap_itself(tuple(x.shape), x.stride()):  # the gradient of as_strided needs a place for each element
        x = contiguous(x)
    sizes, strides = [], []
    for n in kept:
        at = [d for d, name in enumerate(names) if name == n]
        if len({x.shape[d] for d in at}) > 1:
            raise RuntimeError(
                f"einsum(): subscript {n} is repeated for dimensions of sizes {[x.shape[d] for d in at]}"
            )
        sizes.append(x.shape[at[0]])
        strides.append(sum(x.stride()[d] for d in at))
    return as_strided_op(x, shape=tuple(sizes), strides=tuple(strides), offset=0), kept


def _sum_out(x: Tensor, names: list[Any], keep: set) -> tuple[Tensor, list[Any]]:
    gone = tuple(d for d, n in enumerate(names) if n not in keep)
    if not gone:
        return x, names
    kind = _sum_dtype(x.dtype, None)  # integers grow in a sum, as torch has it, not in a product
    return sum_op(x, dims=gone, keepdim=False, out_dtype=kind), [n for n in names if n in keep]


def _arrange(x: Tensor, names: list[Any], order: list[Any]) -> Tensor:
    """x with its dimensions in `order`, and of size 1 where it has none of a name."""
    have = [n for n in order if n in names]
    x = permute(x, [names.index(n) for n in have]) if x.ndim else x
    return reshape(x, tuple(x.shape[have.index(n)] if n in names else 1 for n in order))


def _pair(a: Tensor, an: list[Any], b: Tensor, bn: list[Any], later: set) -> tuple[Tensor, list[Any]]:
    """Contract two operands over the names that nobody needs `later`: one matrix product."""
    size: dict[Any, int] = {}
    for x, names in ((a, an), (b, bn)):
        for n, s in zip(names, x.shape, strict=True):
            if size.get(n, 1) not in (1, s) and s != 1:
                raise RuntimeError(
                    f"einsum(): operands do not broadcast with remapped shapes: {n} has sizes {size[n]} and {s}"
                )
            size[n] = s if size.get(n, 1) == 1 else size[n]
    whole = lambda x, names, n: n in names and (x.shape[names.index(n)] == size[n])
    a, an = _sum_out(a, an, {n for n in an if n in later or n in bn})
    b, bn = _sum_out(b, bn, {n for n in bn if n in later or n in an})
    if a.dtype is not b.dtype and not a.dtype.is_floating_point:  # one of them was summed
        a, b = a.to(_sum_dtype(a.dtype, None)), b.to(_sum_dtype(b.dtype, None))
    # A name of which one operand has size 1 only broadcasts: it belongs to the other.
    both = [n for n in an if n in bn and whole(a, an, n) and whole(b, bn, n)]
    inner, batch = [n for n in both if n not in later], [n for n in both if n in later]
    rows = [n for n in an if n not in both and (n not in bn or whole(a, an, n))]
    columns = [n for n in bn if n not in both and n not in rows]
    shape = [numel(size[n] for n in part) for part in (batch, rows, inner, columns)]
    x = reshape(_arrange(_drop(a, an, columns), [n for n in an if n not in columns], batch + rows + inner), shape[:3])
    drop = [n for n in bn if n in rows]
    y = reshape(_arrange(_drop(b, bn, drop), [n for n in bn if n not in drop], batch + inner + columns),
                [shape[0], *shape[2:]])  # fmt: skip
    out = reshape(products.matmul(x, y), [size[n] for n in batch + rows + columns])
    return _sum_out(out, batch + rows + columns, later)


def _drop(x: Tensor, names: list[Any], gone: list[Any]) -> Tensor:
    """x without the dimensions of size 1 that are named in `gone`."""
    return reshape(x, tuple(s for n, s in zip(names, x.shape, strict=True) if n not in gone))


def einsum(equation: str, *operands: Any) -> Tensor:
    """Sums of products by Einstein's convention: einsum("bij,bjk->bik", a, b).

    Operands are contracted from left to right, each pair in one matrix product. "..." stands for dimensions that
    broadcast; a name repeated in an operand takes the diagonal; without "->" the names that occur once, sorted, stay.

    Shape: as the equation says: one letter a dimension; the result has the letters after "->".
    Dtype: the same of all, any but bool where there is a product; the result has it.
    Raises:
        RuntimeError: the equation does not fit the operands; a letter has two sizes; the dtypes differ.
        TypeError: the first argument is no string.
    """
    if not isinstance(equation, str):
        raise TypeError("einsum(): the first argument must be the equation: lists of subscripts are not supported")
    given = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else list(operands)
    if not given:
        raise RuntimeError("einsum(): must provide at least one operand")
    names, out = _parse(equation, given)
    terms = [_diagonals(x, n) for x, n in zip(given, names, strict=True)]
    x, have = terms[0]
    for i, (y, its) in enumerate(terms[1:], 2):
        later = {*out, *(n for _, others in terms[i:] for n in others)}
        x, have = _pair(x, have, y, its, later)
    x, have = _sum_out(x, have, set(out))
    return permute(x, [have.index(n) for n in out]) if x.ndim else x


FUNCTIONS = {f.__name__: f for f in (addmm, addmv, baddbmm, outer, dot, mv, einsum)}
