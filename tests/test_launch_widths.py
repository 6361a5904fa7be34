"""Numbers near 2^31 as arguments of kernels: 64 bits wide where a loop in 32 bits would not end."""

import pytest
from triton import cdiv

from tgrad.kernels import launch, reduce
from tgrad.kernels.launch import NARROW


def test_arguments():
    at_most = {launch._type(n) for n in (0, 1, 2**16, NARROW - 1, -(2**31))}
    beyond = {launch._type(n) for n in (NARROW, 2**31 - 1, 2**31, 2**40, -(2**31) - 1)}
    assert at_most == {"i32"} and beyond == {"i64"}
    assert launch._type((NARROW, 1, (NARROW - 1,))) == ("i64", "i32", ("i32",))


@pytest.mark.parametrize("n", [NARROW - 1, NARROW - 4095, NARROW - 2**24 - 7, 2**30 + 1])
@pytest.mark.parametrize("m", [1, 2, 3])
def test_pieces_end_within_32_bits(n, m, monkeypatch):
    """Of what is counted in 32 bits, as the kernels count: first + chunk, then a block further."""
    monkeypatch.setattr(reduce, "INTERPRET", False)
    for across in (False, True):
        bm, bn = reduce.tile(m, n, across)
        pieces = reduce.chunks(m, n, bm, bn)
        chunk = cdiv(cdiv(n, pieces), bn) * bn
        assert pieces * chunk >= n and (pieces - 1) * chunk < n
        assert pieces * chunk + bn < 2**31, (pieces, chunk, bn)
