"""Sections 3.1 to 3.3: version counters, refusals, saved tensors."""

import gc
import weakref

import tgrad
from tests.semantics.harness import attempt, flags, leaf, statement, version_kept

# --- 3.1 the counter -------------------------------------------------------------------------------------------------
WRITES = [
    lambda M, t: t.add_(1), lambda M, t: t.mul_(2), lambda M, t: t.fill_(3), lambda M, t: t.zero_(),
    lambda M, t: t.copy_(M.ones(3)), lambda M, t: t.normal_(), lambda M, t: t.__setitem__(0, 5.0),
    lambda M, t: t.__setitem__(slice(1, None), M.ones(2)), lambda M, t: t.__setitem__(slice(0, 0), 1.0),
    lambda M, t: t.__setitem__(Ellipsis, 1.0), lambda M, t: t.sub_(1), lambda M, t: t.exp_(),
    lambda M, t: t.clamp_(0, 1),
    lambda M, t: t.uniform_(), lambda M, t: t.__iadd__(1), lambda M, t: t.requires_grad_(), lambda M, t: t.detach_(),
    lambda M, t: attempt(t.add_, M.ones(2, 2)), lambda M, t: attempt(t.copy_, M.ones(7)), lambda M, t: t * 2,
]  # fmt: skip


@statement("3.1 [R] a counter starts at 0 and grows by one with each write in place that succeeds")
def test_counts(M):
    found = []
    for write in WRITES:
        t = M.ones(3)
        before = t._version
        write(M, t)
        found.append((before, t._version))
    return found


@statement("3.1 [R] an empty write counts; x[i] += 1 counts twice; a failed write does not")
def test_odd_counts(M):
    e, t, i = M.zeros(0), M.ones(3), M.ones(3, dtype=M.int64)
    e.add_(1)
    t[0] += 1
    attempt(i.add_, 1.5)
    return e._version, t._version, t, i._version


@statement("3.1 [R][T] the base, its views and detach share one counter; clone and .data have their own")
def test_shared(M):
    t = M.ones(4)
    v = t[1:]
    w, d, c, data = v.view(3, 1), t.detach(), t.clone(), t.data
    for one in (t, v, w, d):
        one.add_(1)
    found = [one._version for one in (t, v, w, d, c, data)]
    data.add_(1)
    c.add_(1)
    c.add_(1)
    late = t.detach()
    return found, [one._version for one in (t, v, w, d, c, data, late)], t


@statement("3.1 graph.increment_version adds one, to one tensor or each of several")
def test_increment(M):
    a, b = M.ones(2), M.ones(2)
    M.autograd.graph.increment_version(a)
    M.autograd.graph.increment_version([a, b[1:]])
    return a._version, b._version


@statement("3.1 [T] per storage, not per region: a write outside the saved view still raises")
def test_per_storage(M):
    b, x = M.ones(4), leaf(M, 1.0, 2.0)
    y = (b[2:] * x).sum()
    b[0] = 5.0
    return attempt(y.backward), x.grad


# --- 3.2 refusals ----------------------------------------------------------------------------------------------------
@statement("3.2 a leaf that requires grad is not written in grad mode")
def test_leaf(M):
    x = leaf(M)
    writes = [lambda: x.add_(1), lambda: x.__iadd__(1), x.zero_, x.normal_, lambda: M.nn.ReLU(inplace=True)(x),
              lambda: x.copy_(M.ones(3)), lambda: x.fill_(0.0)]  # fmt: skip
    return [version_kept(x, write) for write in writes]


@statement("3.2 nor through a view, nor by setitem")
def test_view_of_leaf(M):
    x, p = leaf(M), M.ones(3)
    v = p[1:]
    p.requires_grad_()
    writes = [(x, lambda: x[1:].mul_(2)), (x, lambda: x.__setitem__(0, 1.0)), (p, lambda: v.add_(1))]
    return [version_kept(t, write) for t, write in writes]


@statement("3.2 dtypes and shapes: the result must fit what is written")
def test_fit(M):
    i, f = M.ones(3, dtype=M.int64), M.ones(3)
    f.add_(M.ones(3, dtype=M.float64))
    return (
        version_kept(i, lambda: i.add_(M.ones(3))), version_kept(f, lambda: f.add_(M.ones(2, 3))), f,
        version_kept(i, lambda: i.mul_(1.5)),
    )  # fmt: skip


@statement("3.2 overlap inside the written tensor is refused, but for fills")
def test_overlap_inside(M):
    e = M.ones(1, 3).expand(2, 3)
    refused = [version_kept(e, w) for w in (lambda: e.add_(1), lambda: e.mul_(2), lambda: e.copy_(M.ones(2, 3)))]
    e.fill_(4.0)
    e[0, 1] = 2.0
    found = e, e._version
    e.zero_()
    return refused, found, e


@statement("3.2 partial overlap of source and destination is refused")
def test_partial_overlap(M):
    t = M.tensor([1.0, 2.0, 3.0, 4.0])
    return version_kept(t, lambda: t[1:].add_(t[:-1])), version_kept(t, lambda: t[1:].copy_(t[1:])), t.add_(t)


@statement("3.2 [R] multi-output views are not written where that would be recorded")
def test_multi_output(M):
    found = []
    for split in (lambda t: t.unbind(0), lambda t: t.split(1), lambda t: t.chunk(3), list):
        z, y, p = leaf(M) * 1, leaf(M) * 1, M.zeros(3)
        part = split(z)[0]
        found.append(version_kept(part, lambda part=part: part.mul_(2)))
        part = split(z)[1].view(1)
        found.append(version_kept(part, lambda part=part: part.mul_(2)))
        other = split(y)[1]
        y.mul_(2)
        found.append((attempt(lambda other=other: other * 2), attempt(lambda other=other: other.grad_fn)))
        split(p)[0].add_(7)
        found.append((p, p._version))
    return found


@statement("3.2 [R] x[0], slices and select are single-output views: they may be written")
def test_single_output(M):
    x = leaf(M)
    z = x * 1
    z[0].mul_(2)
    z[1:].mul_(3)
    z.select(0, 2).mul_(5)
    z.narrow(0, 0, 1).mul_(7)
    z.sum().backward()
    return z, x.grad, z._version


@statement("3.2 detach_ is refused on a view; a base becomes a leaf, its views keep their graph")
def test_detach_in_place(M):
    x = leaf(M)
    z = x * 2
    v = z[1:]
    refused = attempt(v.detach_)
    same = z.detach_() is z
    found = flags(z), v.requires_grad
    v.sum().backward()
    return refused, same, found, x.grad, z._version


# --- 3.3 saved tensors -----------------------------------------------------------------------------------------------
@statement(
    "3.3 [R] a saved tensor written since: backward raises at its node; leaves reached before keep what they got"
)
def test_check(M):
    x, w = leaf(M), leaf(M)
    h = x * 1
    y = (h * h).sum() + (w * 3.0).sum()
    h.add_(1)
    return attempt(y.backward), x.grad


@statement("3.3 [R] the check names the versions")
def test_check_text(M):
    h = leaf(M) * 1
    y = (h * h).sum()
    h.add_(1)
    h.add_(1)
    text = attempt(y.backward).text
    return "is at version 2; expected version 0 instead" in text, "FloatTensor [3]" in text, "anomaly" in text


SAVES_NOTHING_OF_X = [
    lambda M, x, w: x + w, lambda M, x, w: x - w, lambda M, x, w: x * 2.5, lambda M, x, w: x / 2.5,
    lambda M, x, w: x.sum(),
    lambda M, x, w: x.mean(), lambda M, x, w: -x, lambda M, x, w: x.view(3, 1), lambda M, x, w: x[1:],
    lambda M, x, w: x.expand(2, 3), lambda M, x, w: x.clone(), lambda M, x, w: x.double(),
    lambda M, x, w: x.reshape(1, 3),
    lambda M, x, w: x * w.detach(), lambda M, x, w: x / w.detach(), lambda M, x, w: x.exp(),
    lambda M, x, w: x.sigmoid(),
    lambda M, x, w: x.tanh(), lambda M, x, w: x.sqrt(), lambda M, x, w: x.relu(), lambda M, x, w: x.reciprocal(),
    lambda M, x, w: M.softmax(x, 0), lambda M, x, w: M.nn.functional.linear(x, M.ones(2, 3)),
]  # fmt: skip
SAVES_X = [
    lambda M, x, w: x * w, lambda M, x, w: w / x, lambda M, x, w: x.log(), lambda M, x, w: x**3,
    lambda M, x, w: x.sin(),
    lambda M, x, w: x * x, lambda M, x, w: x.abs(), lambda M, x, w: M.maximum(x, w), lambda M, x, w: x.clamp(0.0, 1.0),
    lambda M, x, w: M.nn.functional.linear(x, M.ones(2, 3, requires_grad=True)),
]  # fmt: skip


@statement("3.3 [R][T] an op saves only what the gradient needs, given which inputs require grad")
def test_saves_only_what_is_needed(M):
    found = []
    for op in SAVES_NOTHING_OF_X + SAVES_X:
        x, w = leaf(M) * 1, leaf(M, 2.0, 3.0, 4.0)
        y = op(M, x, w)
        x.mul_(2)
        found.append(getattr(attempt(y.backward, M.ones_like(y)), "kind", None))
    return found


@statement("3.3 [R][T] exp, sigmoid, tanh, sqrt and relu save their result; log, pow and sin their input")
def test_saves_results(M):
    found = []
    for op in (lambda x: x.exp(), lambda x: x.sigmoid(), lambda x: x.tanh(), lambda x: x.sqrt(), lambda x: x.relu(),
               lambda x: x.log(), lambda x: x**3, lambda x: x.sin(), lambda x: x + 1):  # fmt: skip
        x = leaf(M)
        y = op(x)
        with M.no_grad():
            y.mul_(2)
        found.append(getattr(attempt(y.sum().backward), "kind", None))
    return found


@statement("3.3 [T] h.mul_(w) keeps h's old value for w's gradient")
def test_old_value(M):
    x, w = leaf(M), leaf(M, 2.0, 3.0, 4.0)
    h = x * 1
    h.mul_(w)
    k = x * 1
    k.div_(w)
    k.exp_()
    (h.sum() + k.sum()).backward()
    return x.grad, w.grad, h, h._version


@statement("3.3 writes through .data, and data put in its place, are not noticed")
def test_data(M):
    x, w = leaf(M), leaf(M)
    y = (x * w).sum()
    x.data.mul_(10)
    y.backward()
    return w.grad, x._version


@statement("3.3 [R][T] saving a result makes no reference cycle: everything dies by reference count alone")
def test_no_cycle(M):
    gc.collect()
    gc.disable()
    try:
        found = []
        for op in (
            lambda x: x.exp(),
            lambda x: x.sigmoid().tanh(),
            lambda x: M.softmax(x, 0),
            lambda x: x.relu().sqrt(),
        ):
            y = op(leaf(M))
            gone = weakref.ref(y)
            del y
            found.append(gone() is None)
        h = leaf(M) * 1
        gone = weakref.ref(h)
        kept = h + 1
        del h
        found += [gone() is None, kept.requires_grad]
        return found
    finally:
        gc.enable()


class Box:
    def __init__(self, tensor):
        self.tensor = tensor


@statement("3.3 [R][T] what is saved lives until a backward that does not retain it, or the graph's end")
def test_saved_lives_until_backward(M):
    gc.collect()
    gc.disable()
    try:
        found = []
        for end in (lambda y: y.backward(retain_graph=True), lambda y: y.backward(), lambda y: None):
            boxes = []

            def pack(t, boxes=boxes):
                box = Box(t)
                boxes.append(weakref.ref(box))
                return box

            with M.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
                h = leaf(M) * 1.0
                boxes.clear()
                y = (h * h).sum()
            alive = [[b() is not None for b in boxes]]
            end(y)
            alive.append([b() is not None for b in boxes])
            del y
            alive.append([b() is not None for b in boxes])
            found.append(alive)
        return found
    finally:
        gc.enable()


def test_no_cycle_through_views():
    """Here torch makes a cycle: the history of v saves v."""
    gc.collect()
    gc.disable()
    try:
        y = leaf(tgrad) * 1
        y.exp_()
        v = y[1:]
        v.mul_(v)
        gone = weakref.ref(y), weakref.ref(v), weakref.ref(y.grad_fn)
        del y, v
        assert [g() for g in gone] == [None] * 3
    finally:
        gc.enable()
