"""Every statement has a test, and every test covers a statement of the list."""

from tests.semantics.count import load, tag
from tests.semantics.harness import COVERED
from tests.semantics.statements import STATEMENTS


def test_every_statement_has_a_test():
    load()
    assert [s for s in STATEMENTS if s not in COVERED] == []
    assert [s for s in COVERED if s not in STATEMENTS] == []


def test_statements_are_told_apart():
    assert len(set(STATEMENTS)) == len(STATEMENTS)
    assert {tag(s) for s in STATEMENTS} == {"[R]", "[R][T]", "[T]", "[Q]", ""}
