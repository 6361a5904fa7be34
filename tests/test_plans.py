"""The plans of an op: bounded, and forgotten together wherever they are looked up."""

import tgrad
from tgrad import dispatch
from tgrad.ops import pointwise as p


def in_step(plans):
    singles = {(layout,): plan for layout, plan in plans.singles.items()}
    pairs = {(a, b): plan for a, others in plans.pairs.items() for b, plan in others.items()}
    return singles | pairs == {key: plan for key, plan in plans.items() if len(key) < 3}


def test_plans_are_bounded(monkeypatch):
    monkeypatch.setattr(dispatch, "MAX_PLANS", 3)
    for op, call in ((p.exp, lambda x: x.exp()), (p.sub, lambda x: x - x), (p.sub, lambda x: x - 2)):
        for n in range(1, 6):
            assert call(tgrad.ones(n)).shape == (n,)
            assert 0 < len(op.plans) <= 3 and in_step(op.plans)


def test_plans_are_made_anew_with_the_default_dtype():
    whole, before = tgrad.ones(3, dtype=tgrad.int64), tgrad.get_default_dtype()
    calls = (lambda: whole.exp(), lambda: whole / whole, lambda: whole / 2)
    try:
        for dtype in (tgrad.float32, tgrad.float64, tgrad.float32):
            tgrad.set_default_dtype(dtype)
            assert [f().dtype for f in calls] == [dtype] * 3
    finally:
        tgrad.set_default_dtype(before)
