"""What tgrad orders after what, where PyTorch's current CUDA stream is another than tgrad's, on a machine without CUDA.

`python -m tests.stub.stream_order REPORT.json` runs the cases over torch as with one CUDA device: its memory is host
memory, its streams are names, and every operation on that memory, and every launch, is logged with its stream and all
that is ordered before it. Values are right, too, since all runs at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tests.stub.outcomes import outcomes

CASES: dict[str, Callable[[], None]] = {}
CUDA = torch.device("cuda", 0)
MAIN, SIDE = 0x100, 0x200  # addresses of streams: tgrad's, and one of the user's


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


# --- streams, and what is ordered before what -------------------------------------------------------------------------
@dataclass
class Done:
    """One operation: on which stream, and which earlier ones (by number) are ordered before it."""

    name: str
    stream: int
    before: frozenset[int]


log: list[Done] = []
seen: dict[int, set[int]] = {}  # by stream: what whatever comes next there comes after
entered: list[int] = []  # streams that somebody made torch's current one
recorded: list[tuple[int, int]] = []  # address of memory, and a stream that its reuse waits for


def note(name: str, stream: int) -> None:
    known = seen.setdefault(stream, set())
    log.append(Done(name, stream, frozenset(known)))
    known.add(len(log) - 1)


class Stream:
    device = CUDA

    def __init__(self, device: Any = None, priority: int = 0, *, address: int = 0x300) -> None:
        assert device in (0, None), device
        self.cuda_stream = address

    def wait_stream(self, other: Stream) -> None:
        seen.setdefault(self.cuda_stream, set()).update(seen.get(other.cuda_stream, ()))

    def record_event(self) -> Any:
        return frozenset(seen.get(self.cuda_stream, ()))

    def wait_event(self, event: Any) -> None:
        seen.setdefault(self.cuda_stream, set()).update(event)


class Event:
    def __init__(self, enable_timing: bool) -> None: ...

    def record(self, stream: Stream) -> None:
        note("event", stream.cuda_stream)


current = [MAIN]


@contextlib.contextmanager
def enter(stream: Stream) -> Iterator[None]:
    entered.append(stream.cuda_stream)
    current.append(stream.cuda_stream)
    try:
        yield
    finally:
        current.pop()


# --- memory that torch says is on a device ----------------------------------------------------------------------------
on_device: set[int] = set()  # storages
# What makes another tensor of the same memory, and what asks: not done by the device.
QUIET = {"__get__", "__getitem__", "set_", "as_strided", "detach", "data_ptr", "untyped_storage", "numel",
         "storage_offset", "stride", "is_conj", "is_neg", "dim", "size", "requires_grad_", "view", "numpy",
         "is_inference", "element_size", "is_contiguous", "backward", "register_hook", "__set__", "to_dlpack",
         "__dlpack__"}  # fmt: skip


def place(t: Any) -> int:
    return t.untyped_storage()._cdata


def leaves(values: Any) -> Iterator[torch.Tensor]:
    for v in values if isinstance(values, (tuple, list)) else [values]:
        if isinstance(v, torch.Tensor):
            yield v
        elif isinstance(v, (tuple, list)):
            yield from leaves(v)


class Pretended(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options, name = dict(kwargs or {}), getattr(function, "__name__", "")
        options.pop("pin_memory", None)
        marked = [t for t in leaves(args) if place(t) in on_device]
        asked = getattr(getattr(function, "__self__", None), "__name__", "") if name == "__get__" else ""
        if asked in ("device", "is_cuda"):
            return (CUDA if marked else torch.device("cpu")) if asked == "device" else bool(marked)
        there = str(options.pop("device", None)).startswith("cuda")
        if name == "cpu":
            note("cpu", current[-1]) if marked else None
            return args[0].clone() if marked else args[0]
        if (marked or there) and name not in QUIET:
            note(name, current[-1])
        result = function(*args, **options)
        if there or marked:
            on_device.update(place(t) for t in leaves(result))
        return result


def record_stream(self: torch.Tensor, stream: Stream) -> None:
    recorded.append((self.untyped_storage().data_ptr(), stream.cuda_stream))


def pretend() -> None:
    from tests.stub import two_devices

    two_devices.pretend()
    torch.empty = EMPTY
    torch.Tensor.record_stream = record_stream  # type: ignore[assignment]
    cuda: Any = torch.cuda
    cuda.current_stream = lambda *_: Stream(address=current[-1])
    cuda.ExternalStream = lambda address, device: Stream(device, address=address)
    cuda.Stream, cuda.Event, cuda.stream = Stream, Event, enter
    cuda.synchronize = lambda device: note(f"synchronize {device}", current[-1])
    Pretended().__enter__()


EMPTY = torch.empty


@contextlib.contextmanager
def logging() -> Iterator[None]:
    from tgrad.kernels import launch

    log.clear(), seen.clear(), entered.clear(), recorded.clear()
    with launch.listen(lambda name: note("kernel " + name, launch.stream())):
        yield


def side() -> Any:
    return torch.cuda.stream(Stream(address=SIDE))


def streams_of(name: str) -> set[int]:
    found = {done.stream for done in log if done.name.startswith(name)}
    assert found, f"no {name} in {log}"
    return found


def ordered(first: str, then: str) -> None:
    """The last `then` comes after every `first` before it."""
    last = max(i for i, done in enumerate(log) if done.name.startswith(then))
    early = {i for i, done in enumerate(log[:last]) if done.name.startswith(first)}
    assert early and early <= log[last].before, f"{then} may come before {first}: {log}"


def theirs(*values: float) -> torch.Tensor:
    """A tensor of torch on the device, filled on the current stream."""
    t = torch.empty(len(values), device="cuda:0")
    with torch.no_grad():
        t.copy_(torch.tensor(values))
    return t


# --- the cases --------------------------------------------------------------------------------------------------------
@case
def copies_are_on_tgrads_stream() -> None:
    import tgrad

    with logging(), side():
        x = tgrad.tensor([1.0, 2.0]) * 3
        assert x.cpu().tolist() == x.tolist() == [3.0, 6.0] and x[1].item() == 6.0
        y = tgrad.tensor([0.0, 0.0])
        y.copy_(x.cpu())
        assert y.cpu().cuda().tolist() == [3.0, 6.0]
        wide = tgrad.zeros(1 << 19)  # no block of a free list
        wide.storage.copy_from(wide.storage)
    for name in ("cpu", "copy_", "empty", "kernel"):
        assert streams_of(name) == {MAIN}, log


@case
def nothing_is_switched_where_streams_agree() -> None:
    import tgrad
    from tgrad.interop import from_torch, to_torch, torch_function

    with logging():
        x = from_torch(theirs(1.0, 2.0))
        assert to_torch(x.cpu().cuda() * 2).tolist() == [2.0, 4.0]
        torch_function(tgrad.exp)(theirs(1.0))
    assert not entered and not recorded, (entered, recorded)


@case
def memory_from_pytorch() -> None:
    from tgrad.interop import from_torch

    with logging():
        with side():
            t = theirs(1.0, 2.0)
            x = from_torch(t)
        assert (x + 1).tolist() == [2.0, 3.0]
    assert streams_of("copy_") == {SIDE} and streams_of("kernel") == {MAIN}
    ordered("copy_", "kernel")
    assert {stream for address, stream in recorded if address == x.storage.ptr} == {MAIN, SIDE}, recorded


@case
def memory_to_pytorch() -> None:
    import tgrad
    from tgrad.interop import to_torch

    for give in (to_torch, lambda y: y.__dlpack__()):
        with logging():
            y = tgrad.tensor([1.0, 2.0]).exp()
            with side():
                t = give(y)
                if isinstance(t, torch.Tensor):
                    t.mul_(2)
                else:
                    note("mul_", SIDE)
        ordered("kernel", "mul_")
        assert {stream for _, stream in recorded} == {MAIN, SIDE}, recorded


@case
def gradients_across_from_pytorch() -> None:
    from tgrad.interop import torch_function

    with logging(), side():
        t = theirs(1.0, 2.0).requires_grad_()
        out = torch_function(lambda x: (x * x).sum())(t * 1.0)
        ordered("mul", "kernel")
        later = out * 2.0
        ordered("kernel", "mul")
        later.backward()
        assert t.grad.tolist() == [4.0, 8.0]
    ordered("mul", "kernel")


@case
def memory_that_both_have_already() -> None:
    """Where no tensor passes: parameters, and what a function writes in place."""
    import tgrad
    from tgrad.interop import tgrad_function, torch_function

    class Ours(tgrad.nn.Linear):
        def forward(self) -> tgrad.Tensor:
            return self.weight.sum()

    class Theirs(torch.nn.Linear):
        def forward(self) -> int:
            with torch.no_grad():
                self.weight.mul_(2.0)
            return 1

    t, ours = theirs(1.0), torch_function(Ours(2, 1))
    with logging(), side():
        with torch.no_grad():
            ours.weight.fill_(1.0)
        assert ours().tolist() == 2.0
        ordered("fill_", "kernel")
    with logging(), side():
        torch_function(lambda x: x.mul_(2.0).ndim)(t)
        t.add_(1.0)
        assert t.tolist() == [3.0]
        ordered("kernel", "add_")
    module = Theirs(2, 1, device="cuda:0")
    on_device.update(place(p) for p in module.parameters())
    crossed = tgrad_function(module)
    with logging(), side():
        with tgrad.no_grad():
            crossed.weight.fill_(2.0)
            assert crossed() == 1
            ordered("kernel", "mul_")
            assert (crossed.weight + 0).tolist() == [[4.0, 4.0]]
            ordered("mul_", "kernel")


@case
def gradients_across_from_tgrad() -> None:
    import tgrad
    from tgrad.interop import tgrad_function

    with logging(), side():
        x = tgrad.tensor([1.0, 2.0], requires_grad=True)
        out = tgrad_function(lambda t: torch.mul(t, t))(x.exp())
        ordered("kernel", "mul")
        out.sum().backward()
        assert x.grad is not None
    ordered("mul", "kernel")
    assert streams_of("mul") == {SIDE} and streams_of("kernel") == {MAIN}


@case
def another_stream_for_tgrad() -> None:
    import tgrad

    a, s = tgrad.tensor([1.0, 2.0]), Stream(address=SIDE)
    with logging():
        a.exp()
        with tgrad.cuda.stream(s):
            assert tgrad.cuda.current_stream().cuda_stream == SIDE == torch.cuda.current_stream().cuda_stream
            b = a.log()
            b.cpu()
            with contextlib.suppress(ZeroDivisionError), tgrad.cuda.stream(tgrad.cuda.Stream()):
                b.sin()
                raise ZeroDivisionError
            b.cos()
        b.tan()
        with tgrad.cuda.stream(None):
            b.neg()
    assert [d.stream for d in log if d.name.startswith("kernel")] == [MAIN, SIDE, 0x300, SIDE, MAIN, MAIN], log
    assert streams_of("copy_") == {SIDE} and len(entered) == 2
    for i, done in enumerate(log):
        assert done.before >= set(range(i)), log  # one after another
    other = Stream(address=0x400)
    other.device = torch.device("cuda", 1)
    for stream, kind, says in ((other, RuntimeError, "got one of cuda:1"), (3, TypeError, "got int")):
        try:
            with tgrad.cuda.stream(stream):
                raise AssertionError
        except kind as error:
            assert says in str(error), error
    assert tgrad.cuda.current_stream().cuda_stream == MAIN


@case
def offloaded_memory() -> None:
    import tgrad
    from tgrad.torch_host import HostMemory, arrive

    with logging(), side():
        x = tgrad.ones(1 << 19)
        y = x * 2
        kept = HostMemory(y.storage)
        ordered("kernel", "copy_")
        back = tgrad.empty(1 << 19)
        arrive(kept.bring(back.storage))
        assert back[5].item() == 2.0
        back + 1
    ordered("copy_", "kernel")
    assert SIDE not in streams_of("copy_")


@case
def device_time_and_waiting() -> None:
    import tgrad
    from tgrad.torch_streams import Timer

    timer = Timer()
    with logging(), side():
        timer.start()
        tgrad.ones(3)
        timer.stop()
        tgrad.cuda.synchronize()
    assert streams_of("event") == {MAIN} and streams_of("synchronize 0")


@case
def a_graph_takes_no_other_memory_or_stream() -> None:
    import tgrad
    from tgrad import storage
    from tgrad.interop import from_torch

    def refuse(what: str) -> None:
        raise NotImplementedError(what)

    for call, says in (
        (lambda: from_torch(theirs(1.0)), "takes memory of PyTorch"),
        (tgrad.cuda.stream(Stream(address=SIDE)).__enter__, "switches to another stream"),
    ):
        storage.refuse = refuse
        try:
            call()
        except NotImplementedError as error:
            assert str(error) == says
        else:
            raise AssertionError(says)
        finally:
            storage.refuse = None


def main(report: str) -> None:
    for name in ("TGRAD_LAUNCH", "TRITON_INTERPRET"):
        os.environ.pop(name, None)
    os.environ["TGRAD_NATIVE"] = "0"
    pretend()
    from tgrad.kernels import launch

    launch._stream = MAIN
    outcomes(CASES, report)


if __name__ == "__main__":
    main(*sys.argv[1:])
