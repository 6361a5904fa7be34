"""Random programs: tgrad and torch agree on values, gradients, flags, versions and errors, step by step."""

import pytest

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.semantics.random_programs import disagreement, random_program

NUMBERS = st.integers(0, 99)


@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), min_size=5, max_size=40))
def test_agree(program):
    found = disagreement(program)
    assert found is None, "\n" + found


@pytest.mark.parametrize("seed", range(40))
def test_agree_by_seed(seed):
    """Longer programs than hypothesis likes to draw: the first of the large run."""
    found = disagreement(random_program(seed))
    assert found is None, "\n" + found
