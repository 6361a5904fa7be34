"""A step of AdamW and SGD over many parameters, beside PyTorch's fused=True and its default, foreach."""

from __future__ import annotations

from typing import Any

import torch

import tgrad
from tests.benchmarks.gpu.bench import Bench, Contest
from tests.benchmarks.gpu.data import share

BYTES = {"AdamW": 28, "SGD": 12, "SGD, momentum": 20}  # read and written per float32 parameter
OPTIONS: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 1e-3, "weight_decay": 0.1}, "SGD": {"lr": 1e-3}, "SGD, momentum": {"lr": 1e-3, "momentum": 0.9},
}  # fmt: skip
SETS = {"large": [(4096, 4096)] * 16 + [(4096,)] * 16, "small": [(64, 64)] * 64 + [(64,)] * 64}


def run(b: Bench) -> None:
    for name in BYTES:
        for kind in SETS:
            _step(b, name, kind)


def _step(b: Bench, name: str, kind: str) -> None:
    shapes = [b.size(*shape) for shape in (SETS[kind] if not b.smoke else SETS[kind][:1] + SETS[kind][-1:])]
    count = sum(torch.Size(s).numel() for s in shapes)

    def build() -> Contest:
        values = [(b.random(s, torch.float32), b.random(s, torch.float32)) for s in shapes]
        kept: dict[str, list[Any]] = {}

        def torch_step(contender: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
            params = [torch.nn.Parameter(v.to(dtype, copy=True)) for v, _ in values]
            for p, (_, g) in zip(params, values, strict=True):
                p.grad = g.to(dtype)
            kept[contender] = params
            kind = torch.optim.AdamW if name == "AdamW" else torch.optim.SGD
            return kind(params, **OPTIONS[name], **options).step

        def tgrad_step() -> Any:
            params = [tgrad.nn.Parameter(share(v.clone())) for v, _ in values]
            for p, (_, g) in zip(params, values, strict=True):
                p.grad = share(g)
            kept["tgrad"] = params
            return (tgrad.optim.AdamW if name == "AdamW" else tgrad.optim.SGD)(params, **OPTIONS[name]).step

        steps = {
            "tgrad": tgrad_step(), "torch": torch_step("torch", fused=True),
            "torch foreach": torch_step("torch foreach", foreach=True),
        }  # fmt: skip

        def call(contender: str) -> Any:
            def step() -> list[Any]:
                steps[contender]()
                return kept[contender]

            return step

        def exact() -> list[torch.Tensor]:
            step = torch_step("exact", torch.float64, foreach=False)
            step()
            step()  # each contender is run twice before its result is read
            return [p.detach() for p in kept["exact"]]

        return Contest({contender: call(contender) for contender in steps}, exact)

    b.case(f"{name} step, {kind}", torch.float32, (len(shapes), count), build, nbytes=BYTES[name] * count,
           wall=100 if kind == "small" else 0, device=kind == "large", goal="optimizer")  # fmt: skip
