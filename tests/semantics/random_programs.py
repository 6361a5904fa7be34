"""Random programs of operations, views, writes in place, mode switches and backward passes, run on tgrad and on torch.

A program is a list of four-tuples of integers: the instruction, and three numbers that choose its operands among the
tensors at hand. So any list of such tuples is a program, and a part of a program is one too.

`python -m tests.semantics.random_programs --count 2000` runs many and prints the first that disagree, made short.
"""

import argparse
import random
import sys
import warnings

import torch

import tgrad
from tests.semantics.harness import Refused, attempt, plain, same

SHAPES = [(2, 3), (3,), (2, 3), (1, 3), (), (3, 3)]
UNARY = ["neg", "sin", "tanh", "sigmoid", "cos", "relu", "square", "clone", "abs"]
BINARY = ["add", "sub", "mul", "maximum", "div"]
IN_PLACE = ["neg_", "sin_", "tanh_", "sigmoid_", "zero_", "relu_", "cos_"]
IN_PLACE_BINARY = ["add_", "sub_", "mul_", "copy_", "mul_", "div_"]
VIEWS = [
    lambda t, k: t.view(-1), lambda t, k: t.transpose(0, -1), lambda t, k: t[k % max(len(t), 1)],
    lambda t, k: t[k % 2 :],
    lambda t, k: t[..., ::2], lambda t, k: t.unsqueeze(k % 2), lambda t, k: t.expand(2, *t.shape),
    lambda t, k: t.squeeze(),
    lambda t, k: t.narrow(-1, k % 2, 1), lambda t, k: t.reshape(-1), lambda t, k: t.view(tuple(t.shape)),
    lambda t, k: t.select(-1, k % 3), lambda t, k: t.flatten(),
]  # fmt: skip
SEVERAL = [lambda t: t.unbind(0), lambda t: t.chunk(2), lambda t: t.split(1, -1)]
KEYS = [
    lambda k: 0,
    lambda k: slice(k % 2, None),
    lambda k: (Ellipsis, k % 3),
    lambda k: slice(None, None, 2),
    lambda k: Ellipsis,
]


_OFF_ZERO = " squared + 0.5"  # the sign of a zero is nobody's promise


class Machine:
    """Runs one program on one module.

    A view made with recording off may say another thing of itself in tgrad than in torch: such views are `hidden`, that
    is, written to, but not used as operands. So are tensors that torch has written although it refused to.
    """

    def __init__(self, module):
        self.M = module
        self.tensors, self.hidden, self.contexts, self.lines = [], [], [], []
        self.born = {}
        for i in range(4):
            self.new(i, i != 2)

    def new(self, kind, requires_grad):
        shape = SHAPES[kind % len(SHAPES)]
        count = 1
        for n in shape:
            count *= n
        values = [(0.7 + 0.31 * i + 0.17 * len(self.tensors)) * (-1) ** i for i in range(count)]
        t = self.M.tensor(values, dtype=self.M.float64).view(shape).detach().clone()
        t.requires_grad_(requires_grad)
        return self.keep(t, False)

    def keep(self, t, hidden):
        if not t.is_inference():
            self.born.setdefault(_memory(t), t._version)  # torch's results are born with what it took to make them
        self.tensors.append(t)
        self.hidden.append(hidden)
        return self.flags(t, hidden)

    def flags(self, t, hidden):
        version = t._version - self.born[_memory(t)] if t.numel() and not t.is_inference() else None
        return (t.is_inference(), version, tuple(t.shape), None if hidden else t.requires_grad)

    def source(self, k):
        """An operand."""
        seen = [i for i, hidden in enumerate(self.hidden) if not hidden]
        return seen[k % len(seen)]

    def partner(self, i, k, target=None):
        """Another operand, of a shape that goes with that of the first if there is one."""
        shape = tuple(self.tensors[i].shape)
        fits = [
            j for j, t in enumerate(self.tensors) if not self.hidden[j] and _goes_with(tuple(t.shape), shape, target)
        ]
        return fits[k % len(fits)] if fits and k % 7 else self.source(k)

    def apart(self, target, t):
        """t, or a copy if it shares memory with the target in another layout: torch does not always notice."""
        place = lambda x: (x.data_ptr(), tuple(x.shape), tuple(x.stride()))
        return t.detach().clone() if _memory(t) == _memory(target) and place(t) != place(target) else t

    def derived(self, i, t):
        """Keep what may be a view of tensor i."""
        off = not self.M.is_grad_enabled() or self.M.is_inference_mode_enabled()
        return self.keep(t, self.hidden[i] or (off and _memory(t) == _memory(self.tensors[i])))

    def say(self, text):
        self.lines.append(text)

    def step(self, op, a, b, c):
        return INSTRUCTIONS[op % len(INSTRUCTIONS)](self, a, b, c)

    # --- instructions ------------------------------------------------------------------------------------------------
    def leaf(self, a, b, c):
        requires_grad = b % 3 > 0 and not self.M.is_inference_mode_enabled()
        self.say(f"t{len(self.tensors)} = leaf of shape {SHAPES[a % len(SHAPES)]}, requires_grad={requires_grad}")
        return self.new(a, requires_grad)

    def unary(self, a, b, c):
        i, op = self.source(a), UNARY[b % len(UNARY)]
        self.say(f"t{len(self.tensors)} = t{i}.{op}()")
        return self.keep(getattr(self.tensors[i], op)(), False)

    def binary(self, a, b, c):
        i, op = self.source(a), BINARY[b % len(BINARY)]
        j = self.partner(i, c)
        self.say(f"t{len(self.tensors)} = t{i}.{op}(t{j}{_OFF_ZERO if op == 'div' else ''})")
        by = self.tensors[j]
        return self.keep(getattr(self.tensors[i], op)(by * by + 0.5 if op == "div" else by), False)

    def with_number(self, a, b, c):
        i, number = self.source(a), 0.5 + b % 3
        self.say(f"t{len(self.tensors)} = t{i} * {number} + 1")
        return self.keep(self.tensors[i] * number + 1, False)

    def reduce(self, a, b, c):
        i = self.source(a)
        self.say(f"t{len(self.tensors)} = t{i}.{'mean' if b % 2 else 'sum'}({'' if c % 2 else 0})")
        t = self.tensors[i]
        f = t.mean if b % 2 else t.sum
        return self.keep(f() if c % 2 else f(0), False)

    def view(self, a, b, c):
        i = a % len(self.tensors)
        self.say(f"t{len(self.tensors)} = VIEWS[{b % len(VIEWS)}](t{i}, {c})")
        return self.derived(i, VIEWS[b % len(VIEWS)](self.tensors[i], c))

    def several(self, a, b, c):
        i = self.source(a)
        self.say(f"t{len(self.tensors)}, ... = SEVERAL[{b % len(SEVERAL)}](t{i})")
        return [self.derived(i, t) for t in SEVERAL[b % len(SEVERAL)](self.tensors[i])[:2]]

    def write(self, a, b, c):
        i, op = a % len(self.tensors), IN_PLACE[b % len(IN_PLACE)]
        if op == "zero_" and 0 in self.tensors[i].stride():  # torch allows it, and then backward raises
            op = "neg_"
        self.say(f"t{i}.{op}()")
        return self.written(i, getattr(self.tensors[i], op))

    def write_binary(self, a, b, c):
        i, op = a % len(self.tensors), IN_PLACE_BINARY[b % len(IN_PLACE_BINARY)]
        j = self.partner(i, c, target=True)
        self.say(f"t{i}.{op}(t{j}{_OFF_ZERO if op == 'div_' else ''})")
        t = self.tensors[i]
        by = self.tensors[j]
        if op == "div_":
            by = by * by + 0.5
        if op in ("mul_", "copy_") and _memory(t) == _memory(by):  # torch: after h.mul_(h), backward raises
            by = by.clone()
        if t.is_inference() and by.is_inference() and not self.M.is_inference_mode_enabled():
            by = by.clone()  # torch: where all operands are inference tensors, the write goes unnoticed
        return self.written(i, lambda: getattr(t, op)(self.apart(t, by)))

    def set_item(self, a, b, c):
        i, key = a % len(self.tensors), KEYS[b % len(KEYS)](c)
        if not self.tensors[i].shape:
            key = Ellipsis
        j = self.source(c)
        self.say(f"t{i}[{key}] = {'1.5' if c % 2 else f't{j}.mean()'}")
        t = self.tensors[i]
        return self.written(i, lambda: t.__setitem__(key, 1.5 if c % 2 else self.tensors[j].mean()))

    def written(self, i, write):
        """Write tensor i, and take back what torch writes before it refuses to write an inference tensor."""
        t = self.tensors[i]
        outside = t.is_inference() and not self.M.is_inference_mode_enabled()
        before = t.detach().clone() if outside else None
        attempt(lambda: t.grad_fn)  # torch takes a view for a leaf until its history was asked for, or the view used
        try:
            write()
        except RuntimeError:
            if before is not None:
                with self.M.inference_mode():
                    t.detach().copy_(before)
            raise
        return self.flags(t, self.hidden[i])

    def enter(self, a, b, c):
        kind = ("no_grad", "enable_grad", "inference_mode")[a % 3]
        self.say(f"with {kind}():")
        context = getattr(self.M, kind)()
        context.__enter__()
        self.contexts.append(context)

    def leave(self, a, b, c):
        if self.contexts:
            self.say("end of with")
            self.contexts.pop().__exit__(None, None, None)

    def detach(self, a, b, c):
        i = self.source(a)
        if self.tensors[i].is_inference():  # torch: outside inference mode, what it gives may be written
            return None
        self.say(f"t{len(self.tensors)} = t{i}.detach()")
        return self.keep(self.tensors[i].detach(), False)

    def require(self, a, b, c):
        i = self.source(a)
        if self.tensors[i].is_inference():  # torch: an op of such tensors alone records nothing, but for some
            return None
        if sum(_memory(t) == _memory(self.tensors[i]) for t in self.tensors) > 1:  # torch: its views are dead ends
            return None
        self.say(f"t{i}.requires_grad_({b % 4 > 0})")
        self.tensors[i].requires_grad_(b % 4 > 0)
        return self.flags(self.tensors[i], False)

    def hook(self, a, b, c):
        i = self.source(a)
        if self.tensors[i]._base is None:
            self.say(f"t{i}.register_hook(lambda g: g * 2)")
            self.tensors[i].register_hook(lambda g: g * 2)

    def retain(self, a, b, c):
        i = self.source(a)
        if self.tensors[i]._base is not None:  # as with hooks: torch forgets a view's when its base is written
            return
        self.say(f"t{i}.retain_grad()")
        self.tensors[i].retain_grad()

    def backward(self, a, b, c):
        i = self.source(a)
        if not self.M.is_inference_mode_enabled():
            self.say(f"t{i}.sum().backward(retain_graph=True)")
            with self.M.enable_grad():
                root = self.tensors[i].sum()
            root.backward(retain_graph=True)
        return self.gradients()

    def grad(self, a, b, c):
        i, j = self.source(a), self.source(b)
        if not self.M.is_inference_mode_enabled():
            self.say(f"grad(t{i}.sum(), [t{j}], retain_graph=True)")
            with self.M.enable_grad():
                root = self.tensors[i].sum()
            return self.M.autograd.grad(root, [self.tensors[j]], retain_graph=True)

    def matmul(self, a, b, c):
        i, j = self.source(a), self.source(b)
        if self.tensors[i].shape[-1:] != self.tensors[j].shape[-1:]:
            j = i
        self.say(f"t{len(self.tensors)} = t{i} @ t{j}.t()")
        return self.keep(self.tensors[i] @ self.tensors[j].t(), False)

    def gradients(self):
        return [t.grad for t in self.tensors if not t.is_inference()]

    def finish(self):
        """End all blocks, go backward from the last tensors, and tell everything about all."""
        while self.contexts:
            self.contexts.pop().__exit__(None, None, None)
        seen = [i for i, hidden in enumerate(self.hidden) if not hidden]
        ends = [attempt(lambda i=i: self.tensors[i].sum().backward(retain_graph=True)) for i in seen[-4:]]
        flags = [self.flags(t, hidden) for t, hidden in zip(self.tensors, self.hidden, strict=True)]
        return ends, [t.detach() for t in self.tensors], flags, self.gradients()


I = Machine
INSTRUCTIONS = [
    I.unary, I.unary, I.binary, I.binary, I.binary, I.view, I.view, I.view, I.write, I.write_binary, I.write_binary,
    I.set_item, I.enter, I.leave, I.detach, I.require, I.several, I.with_number, I.reduce, I.backward, I.grad, I.matmul,
    I.hook, I.retain, I.leaf,
]  # fmt: skip


def _memory(t):
    return t.untyped_storage().data_ptr() if isinstance(t, torch.Tensor) else t.storage.ptr


def _goes_with(shape, other, target):
    if target:
        return len(shape) <= len(other) and all(n in (1, m) for n, m in zip(shape[::-1], other[::-1]))
    return all(n == m or 1 in (n, m) for n, m in zip(shape[::-1], other[::-1]))


def execute(program, module):
    """The outcome of each instruction, then of the end; and the program in words."""
    before = module.is_grad_enabled()
    machine = Machine(module)
    outcomes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for instruction in program:
            outcomes.append(plain(attempt(machine.step, *instruction)))
            if machine.lines and isinstance(outcomes[-1], Refused):
                machine.lines[-1] += f"  # {outcomes[-1].kind}: {outcomes[-1].text[:60]}"
        outcomes.append(plain(machine.finish()))
    module.set_grad_enabled(before)
    return outcomes, machine.lines


def disagreement(program):
    """None, or where the two part: the program in words and the two outcomes."""
    ours, _ = execute(program, tgrad)
    theirs, lines = execute(program, torch)
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if not agree(a, b):
            where = "at the end" if k == len(program) else f"at instruction {k} of {len(program)}"
            while isinstance(a, list) and isinstance(b, list) and len(a) == len(b):  # down to what differs
                a, b = next((x, y) for x, y in zip(a, b, strict=True) if not agree(x, y))
            return "\n".join(["  " + line for line in lines]) + f"\n  {where}:\n    tgrad {a}\n    torch {b}"
    return None


def agree(a, b):
    """As `same`; which of two reasons is named may differ: a stale view, a saved tensor that was written, an inference
    tensor, a shape."""
    if isinstance(a, Refused) and isinstance(b, Refused):
        stale = any("modified inplace" in e.text or "modified by an inplace" in e.text for e in (a, b))
        early = any(e.text.startswith(("Inplace update to inf", "Inference tensors cannot")) for e in (a, b))
        index = "IndexError" in (a.kind, b.kind)  # of a dimension that a stale view has not
        return same(a, b) or (a.kind == b.kind and (stale or early or index)) or (stale and index)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(agree(x, y) for x, y in zip(a, b, strict=True))
    return same(a, b)


def random_program(seed):
    """5 to 40 instructions."""
    draw = random.Random(seed)
    return [tuple(draw.randrange(100) for _ in range(4)) for _ in range(draw.randint(5, 40))]


def shorten(program):
    """A part of a program that still disagrees."""
    for size in (8, 4, 2, 1, 1):
        i = 0
        while i < len(program):
            part = program[:i] + program[i + size :]
            if disagreement(part):
                program = part
            else:
                i += size
    return program


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--show", type=int, default=3, help="how many of those that disagree are printed")
    arguments = parser.parse_args()
    failed = []
    for seed in range(arguments.start, arguments.start + arguments.count):
        program = random_program(seed)
        if disagreement(program):
            failed.append(seed)
            if len(failed) <= arguments.show:
                short = shorten(program)
                print(f"seed {seed}: {short}\n{disagreement(short)}\n", flush=True)
    print(f"{arguments.count} programs, {len(failed)} disagree{': seeds ' if failed else ''}{str(failed[:40])[1:-1]}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
