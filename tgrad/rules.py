"""What an op decides once per signature: its forward's plan, and the rules by which its nodes go backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tgrad.kernels.launch import Launch
from tgrad.layout import Layout

if TYPE_CHECKING:
    from tgrad.expression import Expression
    from tgrad.op import Op

Formula = Callable[..., Any]

# What a FormulaRule's backward calls: see `FormulaRule.prepared`.
Call = tuple[Layout, Formula, tuple[int, ...]]
Prepared = tuple[tuple[Call, ...], tuple[tuple[int, ...], Callable, tuple[int, ...]] | None]

# Where a recipe finds an operand: among what the node saved, its numbers, or behind its edges.
SAVED, NUMBER, EDGE = range(3)


class Plan:
    """All that an op decides once per signature (layouts of tensors, types of numbers, settings).

    Attributes:
        outs: layouts of the results; the first is the op's, the others are auxiliary or further results.
        launch: takes the addresses of outs, of tensor inputs, then the numbers.
        rules: the Rule for a set of inputs that want a gradient, or None; made as it is asked for.
        rule: `rules` as a function.
    """

    __slots__ = ("outs", "out", "launch", "offset", "rules", "rule")

    def __init__(
        self, outs: tuple[Layout, ...], launch: Launch | None, rule: Callable[[int], Rule | None], offset: int = 0
    ) -> None:
        self.outs, self.launch, self.offset = outs, launch, offset
        self.out = outs[0]

        def planned(mask: int) -> Rule | None:
            found = rule(mask)
            if found is not None:
                found.plan = self
            return found

        self.rules = _Rules(planned)
        self.rule: Callable[[int], Rule | None] = self.rules.__getitem__


class _Rules(dict[int, "Rule | None"]):
    __slots__ = ("make",)

    def __init__(self, make: Callable[[int], Rule | None]) -> None:
        self.make = make

    def __missing__(self, mask: int) -> Rule | None:
        found = self[mask] = self.make(mask)
        return found


class Rule:
    """How a node goes backward, for one set of inputs that want a gradient.

    Attributes:
        wanted: those inputs (indices).
        saves: (index, name) of what is kept: an input, or the result `index - number of inputs`.
        numbers: indices of the Python numbers that formulas name, or a recipe would need.
        big, large: whether an operand, or some of what is kept, is large enough for recipes (recompute.py).
        plan: of the forward.
        source: where a recipe of the result finds its operands: (SAVED, NUMBER or EDGE, index) for each; None if there
            is none.
        edged: whether some of them are found behind edges.
        signs: whether its op is relu or the like, which may keep bits (signs.py).
    """

    __slots__ = ("op", "wanted", "saves", "numbers", "big", "large", "plan", "source", "edged", "signs")

    plan: Plan

    n_results = 1  # more for custom Functions alone

    def __init__(
        self, op: Op, wanted: tuple[int, ...], saves: tuple[tuple[int, str], ...], numbers: tuple[int, ...]
    ) -> None:
        self.op, self.wanted, self.saves, self.numbers = op, wanted, saves, numbers
        self.big = self.large = True
        self.source: tuple[tuple[int, int], ...] | None = None
        self.edged = False
        self.signs = bool(getattr(op, "sign", False))

    def find_source(self, absent: Sequence[bool]) -> None:
        """Say where a recipe finds the operands, `absent[i]` being None; there is none if one is neither kept nor
        behind an edge.
        """
        places = {k: (SAVED, i) for i, (k, _) in enumerate(self.saves)}
        places |= {k: (NUMBER, i) for i, k in enumerate(self.numbers)}
        edges = {k: (EDGE, i) for i, k in enumerate(self.wanted) if k not in places}
        needed = [k for k in range(len(absent)) if not absent[k]]
        if all(k in places or k in edges for k in needed):
            self.source = tuple(places.get(k) or edges[k] for k in needed)
            self.edged = any(kind == EDGE for kind, _ in self.source)


class PointwiseRule(Rule):
    """Formulas that are Expressions.

    Attributes:
        parts: for each wanted input its layout, its gradient over (g, *values), and which values: positions in the
            saved tensors followed by the numbers.
        plans: how to run them, by the layouts of g and the values: launches of backward.py.
        foldable: whether its one formula can be folded into the product before it (folding.py); None: not yet decided.
    """

    __slots__ = ("parts", "plans", "foldable")

    parts: list[tuple[Layout, Expression, tuple[int, ...]]]

    def __init__(self, *of: Any) -> None:
        super().__init__(*of)
        self.plans: dict[tuple, tuple] = {}
        self.foldable: bool | None = None


class FormulaRule(Rule):
    """Formulas to be called with tensors.

    Attributes:
        calls: for each wanted input its layout, formula, fast formula or None, the names it wants, and its settings.
        names: of the saved tensors followed by the numbers; absent ones (None arguments) are not among them.
        joint: which calls one function may do together, that function and the names it wants; None: none.
        fold: which call can take a further formula (folding.py) and the function that does, if there is one.
        plain, recorded: what `prepared` decided.
    """

    __slots__ = ("calls", "names", "joint", "fold", "plain", "recorded")

    calls: list[tuple[Layout, Formula, Formula | None, tuple[str, ...], dict[str, Any]]]
    names: tuple[str, ...]
    joint: tuple[tuple[int, ...], Callable, tuple[str, ...]] | None
    fold: tuple[int, Callable] | None

    def __init__(self, *of: Any) -> None:
        super().__init__(*of)
        self.joint = self.fold = None
        self.plain: Prepared | None = None
        self.recorded: Prepared | None = None

    def prepared(self, recording: bool) -> Prepared:
        """What a backward calls, and with which of the saved tensors and numbers: -1 where one is absent.

        Returns:
            For each call the layout of the input, the function with its settings, and its arguments after g. Then what
            is done together, if anything is: which calls, the function, and its arguments after g.
        """
        found = self.recorded if recording else self.plain
        if found is not None:
            return found
        places = {name: i for i, name in enumerate(self.names)}
        at = lambda names: tuple(places.get(n, -1) for n in names)
        calls = []
        for like, formula, fast, needs, settings in self.calls:
            use = formula if recording or fast is None else fast
            calls.append((like, functools.partial(use, **settings) if settings else use, at(needs)))
        joint = None
        if self.joint is not None and not recording:
            positions, together, names = self.joint
            joint = positions, together, at(names)
        found = tuple(calls), joint
        if recording:
            self.recorded = found
        else:
            self.plain = found
        return found


class PartRule(FormulaRule):
    """Of a view of a part of a tensor: the engine puts the gradients of several parts together (pieces.py)."""

    __slots__ = ()
