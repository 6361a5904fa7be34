"""`python -m tests.semantics.count`: how many statements have a test, by section and tag."""

import importlib
import pkgutil
import re
import sys
from collections import Counter

from tests import semantics
from tests.semantics.harness import COVERED
from tests.semantics.statements import STATEMENTS

TAGS = ("[R][T]", "[R]", "[T]", "[Q]", "")
HEADINGS = {"[Q]": "departures", "": "others"}


def load() -> None:
    """Import every test module of the folder, which registers what it covers."""
    for module in pkgutil.iter_modules(semantics.__path__):
        if module.name.startswith("test_"):
            importlib.import_module(f"tests.semantics.{module.name}")


def section(statement: str) -> str:
    """The first number of a statement: "3.4"."""
    return statement.split()[0]


def tag(statement: str) -> str:
    """How much users rely on it: [R], [T] (a trap), both, [Q] (tgrad departs), or ""."""
    found = re.match(r"\S+ ((\[[RTQ]\])+) ", statement)
    return found[1] if found else ""


def table() -> str:
    """The counts, as text."""
    total, done = Counter(), Counter()
    for s in STATEMENTS:
        for key in ((section(s), tag(s)), ("all", tag(s))):
            total[key] += 1
            done[key] += s in COVERED
    rows = [("section", *[HEADINGS.get(t, t) for t in TAGS])]
    for name in (*dict.fromkeys(map(section, STATEMENTS)), "all"):
        rows.append((name, *[f"{done[name, t]} of {total[name, t]}" if total[name, t] else "" for t in TAGS]))
    lines = ["".join(cell.ljust(13) for cell in row).rstrip() for row in rows]
    relied = [t for t in TAGS if "R" in t or "T" in t]
    lines.append(
        f"{sum(done['all', t] for t in relied)} of {sum(total['all', t] for t in relied)} [R]/[T] statements "
        "have a test; "
        f"{sum(len(names) for names in COVERED.values())} tests cover {len(COVERED)} of {len(STATEMENTS)} statements"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    load()
    print(table())
    sys.exit(not set(STATEMENTS) <= set(COVERED))
