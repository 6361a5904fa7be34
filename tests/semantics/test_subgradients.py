"""Section 6: which subgradient is taken where there are several."""

from tests.semantics.harness import attempt, statement

INF, NAN = float("inf"), float("nan")


def gradient(M, f, *values):
    x = M.tensor(list(values), requires_grad=True)
    f(x).sum().backward()
    return x.grad


@statement("6 relu, abs, leaky_relu, elu at 0")
def test_kinks(M):
    F = M.nn.functional
    return [
        gradient(M, f, -1.0, -0.0, 0.0, 1.0)
        for f in (M.relu, M.abs, lambda x: F.leaky_relu(x, 0.1), F.elu, F.silu, F.softplus, F.gelu)
    ]


@statement("6 clamp: the bounds belong to the inside; nan gives 0")
def test_clamp(M):
    return [
        gradient(M, f, -2.0, -1.0, 0.0, 1.0, 2.0, NAN)
        for f in (lambda x: x.clamp(-1.0, 1.0), lambda x: x.clamp(min=-1.0), lambda x: x.clamp(max=1.0))
    ]


@statement("6 amax and amin share equally among ties; maximum and minimum give half to each")
def test_ties(M):
    found = [gradient(M, f, 3.0, 1.0, 3.0, 1.0) for f in (lambda x: x.amax(), lambda x: x.amin(), lambda x: x.amax(0))]
    for f in (M.maximum, M.minimum):
        a, b = M.tensor([1.0, 2.0, 3.0], requires_grad=True), M.tensor([1.0, 3.0, 2.0], requires_grad=True)
        f(a, b).sum().backward()
        found += [a.grad, b.grad]
    return found


@statement("6 sqrt, log, reciprocal and powers at 0")
def test_at_zero(M):
    return [
        gradient(M, f, 0.0, 1.0)
        for f in (
            M.sqrt,
            M.log,
            M.reciprocal,
            M.rsqrt,
            lambda x: x**0,
            lambda x: x**0.5,
            lambda x: x**2,
            lambda x: x**1.0,
        )
    ]


@statement("6 where sends 0 * inf: nan on the side not taken")
def test_where(M):
    return gradient(M, lambda x: M.where(x > 0, x.sqrt(), x * 0), -1.0, 0.0, 4.0)


@statement("6 comparisons have no gradient")
def test_comparisons(M):
    x = M.tensor([1.0, 2.0], requires_grad=True)
    return (x > 1).requires_grad, attempt((x == 1).float().sum().backward)
