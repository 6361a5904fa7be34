"""Recipes: what is saved for backward is not kept if a cheap kernel makes it again from what is kept anyway.

`linear(gelu(z))` saves z for gelu and gelu's result for linear. The result is gelu of z, and z is there: linear keeps
a `Recipe`, gelu's plan and z, and backward runs it again. It launches the forward's own compiled kernel, so the bits
are the same. Recipes chain (dropout of gelu of z), and their ends are memory that the graph holds whether or not there
is a recipe: tensors that older nodes save, and leaves that require grad.

PyTorch's own compiler chooses so ahead of time (the min-cut partitioner of torch.compile); here it is decided as each
node is recorded, from that node and its makers alone.
"""

from __future__ import annotations

import weakref
from typing import Any

from tgrad import dispatch, graph
from tgrad.graph import Node, Saved
from tgrad.rules import NUMBER, SAVED, Plan
from tgrad.storage import Allocation
from tgrad.tensor import Tensor, empty, make

# The most kernels that one recipe runs, and the most nodes that are looked at for one: views cost nothing.
LONGEST = 4
DEEPEST = 16

# A recipe and bytes from the first of its result, or memory and an address.
Place = tuple[Any, int]


class Recipe:
    """How the result of a node is made again.

    Attributes:
        plan: of its op; all its results are made, the first is meant.
        tensors: for each tensor operand, memory and address, or a recipe and an offset.
        key: falls with time, as of nodes: memory written after it is not what the recipe read.
        length: how many kernels it runs.
        borrowed: bytes of the memory it reads, leaves apart.
        users: saved tensors that have not been asked for: the result is kept for them once it is made.
    """

    __slots__ = (
        "name", "plan", "tensors", "numbers", "key", "users", "length", "borrowed", "result", "settled", "__weakref__",
    )  # fmt: skip

    def __init__(self, name: str, plan: Plan, tensors: tuple[tuple[Any, int], ...], numbers: tuple) -> None:
        self.name, self.plan, self.tensors, self.numbers = name, plan, tensors, numbers
        self.key = graph.next_key()
        self.users = self.borrowed = 0
        self.result: Tensor | None = None
        self.settled = False
        self.length = 1
        me = weakref.ref(self)
        for memory, _ in tensors:
            if isinstance(memory, Recipe):
                self.length += memory.length
            else:
                readers(memory).append(me)

    def __repr__(self) -> str:
        inner = [repr(memory) for memory, _ in self.tensors if isinstance(memory, Recipe)]
        return f"{self.name}({', '.join(inner)})" if inner else self.name

    def run(self) -> Tensor:
        """The result, made anew if it is not at hand.

        Raises:
            RuntimeError: what it reads was written by means that tgrad saw too late.
        """
        if self.result is not None:
            return self.result
        held, addresses = [], []
        for memory, at in self.tensors:
            if isinstance(memory, Recipe):
                t = memory.run()
                held.append(t)
                at += t.ptr
            elif not unwritten(memory, self.key):
                raise RuntimeError(
                    f"the result of {self.name} is to be recomputed for backward, but what it was made from has been "
                    "modified by a custom Function or an external kernel. Run the forward under "
                    "tgrad.activation_memory('keep'), or modify a clone."
                )
            addresses.append(at)
        observer = dispatch.observer
        if observer is not None:
            observer.begin(f"{self.name} (recomputed)")
        outs = [empty(layout, inference=False) for layout in self.plan.outs]
        self.plan.launch(*[t.ptr for t in outs], *addresses, *self.numbers)  # type: ignore[misc]
        if observer is not None:
            observer.end(f"{self.name} (recomputed)")
        if self.users > 0:  # those who asked for more than this, and will ask for this next
            self.result = outs[0]
        return outs[0]

    def take(self) -> Tensor:
        """The result, for one of its users."""
        self.users -= 1
        t = self.run()
        if self.users <= 0 and not self.settled:
            self.result = None
        return t

    def settle(self) -> None:
        """Make the result now, and keep it: what the recipe reads is about to change."""
        if not self.settled:
            self.result, self.settled = self.run(), True
            self.tensors = ()


class Recomputed(Saved):
    """A saved tensor that is kept as a recipe. Its version is checked as ever."""

    __slots__ = ("recipe", "offset")

    def __init__(self, t: Tensor, name: str, own: bool, place: Place) -> None:
        super().__init__(t, name, own)
        self.storage = None
        self.recipe, self.offset = place
        self.recipe.users += 1

    def value(self, node: Node) -> Tensor:
        found = self.recipe.take()
        t = make(self.layout, found.storage, found.ptr + self.offset, self.version)
        t.node = node if self.edge is graph._ITSELF else self.edge
        t._requires_grad = t.node is not None
        return t

    def set_aside(self) -> None:
        """The tensor is about to be written, and may be: the recipe still gives the old value."""
        self.version, self.expected = graph.Version.zero(), 0


# --- what was written, and when
# --------------------------------------------------------------------------------------
def unwritten(memory: Allocation, key: int) -> bool:
    """Whether no write to this memory came after `key`."""
    changed = getattr(memory, "changed", None)
    return changed is None or changed > key


def readers(memory: Allocation) -> list[weakref.ref]:
    """Weak references to what will read this memory in backward, and is to `settle` before it is written."""
    found: list | None = getattr(memory, "readers", None)
    if found is None:
        found = memory.readers = []
    elif len(found) >= 16:
        found[:] = [r for r in found if r() is not None]
    return found


def about_to_write(memory: Allocation) -> None:
    """Settle what reads this memory, and remember that it changes."""
    found = getattr(memory, "readers", None)
    if found:
        memory.readers = []
        for reference in found:
            reader = reference()
            if reader is not None:
                reader.settle()
    memory.changed = graph.next_key()


graph.about_to_write = about_to_write


# --- finding a recipe
# ------------------------------------------------------------------------------------------------
def place_of(node: Node, depth: int = 0) -> Place | None:
    """How to make the result of `node` again from memory that the graph keeps anyway, or where that memory holds it;
    None where neither can be.
    """
    if node.saved is None or depth == DEEPEST:  # freed, or still being recorded
        return None
    return _place_of(node, node.saved, depth)


def _place_of(node: Node, saved: tuple[Saved, ...], depth: int = 0) -> Place | None:
    made = None if node.recipe is None else node.recipe()
    if made is not None:
        return made, 0
    rule = node.rule
    if rule.source is None or (rule.edged and not is_view(node) and not node.intact):
        return None
    tensors: list[tuple[Any, int]] = []
    lenders: list[tuple[Node, Allocation]] = []
    numbers = []
    for kind, i in rule.source:
        if kind == NUMBER:
            numbers.append(node.numbers[i])
            continue
        if kind == SAVED:
            if i >= len(saved):
                return None
            place = _memory(saved[i], node, lenders)
        else:
            place = _behind(node.edges[i], node, lenders, depth)
        if place is None:
            return None
        tensors.append(place)
    plan = rule.plan
    if plan.launch is None:  # a view
        memory, at = tensors[0]
        return memory, at + plan.offset
    recipe = Recipe(rule.op.name, plan, tuple(tensors), tuple(numbers))
    if recipe.length > LONGEST:
        return None
    node.recipe = reference = weakref.ref(recipe)
    for lender, memory in lenders:
        if lender.lent is None:
            lender.lent = []
        lender.lent.append(reference)
        recipe.borrowed += memory.nbytes
    for memory, _ in tensors:
        if isinstance(memory, Recipe):
            recipe.borrowed += memory.borrowed
    return recipe, 0


def _memory(s: Saved, holder: Node, lenders: list[tuple[Node, Allocation]]) -> tuple[Any, int] | None:
    """What `holder` saved as an operand of a recipe, as it was then."""
    if isinstance(s, Recomputed):
        return s.recipe, s.offset
    if type(s) is not Saved or s.storage is None or s.version.value != s.expected:
        return None
    if not unwritten(s.storage, holder.key):
        return None
    if not isinstance(s.edge, Tensor):
        lenders.append((holder, s.storage))
    return s.storage, s.ptr


def _behind(edge: Any, node: Node, lenders: list[tuple[Node, Allocation]], depth: int) -> tuple[Any, int] | None:
    """An operand that its maker saved, or can make again; or a leaf, as it was when `node` was recorded."""
    if isinstance(edge, Tensor):
        return (edge.storage, edge.ptr) if unwritten(edge.storage, node.key) else None
    for s in edge.saved or ():
        if s.edge is graph._ITSELF:
            return _memory(s, edge, lenders)
    return place_of(edge, depth + 1)


def intact(args: Any, node: Node) -> bool:
    """Whether the operands that `node` does not save are still what their makers made."""
    return all(args[i].node is None or as_made(args[i]) for i in node.rule.wanted)


def is_view(node: Node) -> bool:
    """Whether its result lies in its operand's memory."""
    return node.rule.source is not None and node.rule.plan.launch is None


def as_made(t: Tensor) -> bool:
    """Whether the memory of t, which has a history, was not written since it was made."""
    maker: Any = t.node
    while isinstance(maker, Node) and is_view(maker):
        maker = maker.edges[0]
    return not isinstance(maker, Node) or unwritten(t.storage, maker.key)


graph.intact = intact


def lean(t: Tensor, name: str, own: bool, node: Node | None = None) -> Saved:
    """Keep t for backward, as a recipe where there is one.

    Args:
        node: that saves it, complete but for what comes after t in `saved`.
    """
    maker = node if own else t.node
    if maker is not None and t.layout.nbytes >= graph.SMALLEST_RECIPE and t.version is not None:
        place = None
        if own:
            place = _place_of(maker, maker.saved or ())
        elif maker.rule.source is not None and as_made(t):
            if maker.rule.signs:
                graph.restore(t)
            place = place_of(maker)
            for s in maker.saved or ():
                if s.edge is graph._ITSELF and s.storage is t.storage:
                    place = None  # it is kept anyway
        if place is not None and isinstance(place[0], Recipe):
            return Recomputed(t, name, own, place)
    return Saved(t, name, own)


graph.lean = lean


def settle_lent(node: Node) -> None:
    """What `node` saved is dropped while recipes read it: those that would keep more than they save are run now."""
    lent, node.lent = node.lent or (), None
    for reference in lent:
        recipe = reference()
        if recipe is not None and recipe.users > 0 and recipe.borrowed > recipe.plan.outs[0].nbytes:
            recipe.settle()


graph.settle_lent = settle_lent
