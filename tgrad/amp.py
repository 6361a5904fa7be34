"""Mixed precision: `autocast`, and `GradScaler`, which keeps float16's small gradients from vanishing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tgrad import modes
from tgrad.autocasting import autocast, get_autocast_dtype, is_autocast_enabled
from tgrad.optim.optimizer import Optimizer
from tgrad.tensor import Tensor
from tgrad.totals import total
from tgrad.updates import update


def _times(g: Any, factor: Any) -> tuple:
    return (g * factor,)


def _nothing(g: Any) -> Any:
    return g * 0  # nan unless g is finite


class GradScaler:
    """Scales a loss up so that float16 gradients do not vanish, and leaves out steps whose gradients are not finite.

    Args:
        init_scale: the first factor; it doubles (growth_factor) after growth_interval good steps in a row, and is
            halved (backoff_factor) after one that was not finite.
        enabled: False: everything passes through.

    Raises:
        AssertionError: a factor out of range.
    """

    def __init__(
        self, device: str = "cuda", init_scale: float = 2.0**16, growth_factor: float = 2.0,
        backoff_factor: float = 0.5, growth_interval: int = 2000, enabled: bool = True,
    ) -> None:  # fmt: skip
        if enabled and growth_factor <= 1.0:
            raise AssertionError("The growth factor must be > 1.0.")
        if enabled and backoff_factor >= 1.0:
            raise AssertionError("The backoff factor must be < 1.0.")
        self._device, self._enabled, self._scale = device, enabled, init_scale
        self._growth_factor, self._backoff_factor, self._growth_interval = (
            growth_factor, backoff_factor, growth_interval
        )  # fmt: skip
        self._growth_tracker = 0
        self._found: dict[int, bool] = {}  # of optimisers whose gradients were unscaled since the last update
        self._stepped: set[int] = set()

    def is_enabled(self) -> bool:
        """Whether it does anything."""
        return self._enabled

    def get_scale(self) -> float:
        """The factor."""
        return self._scale if self._enabled else 1.0

    def scale(self, outputs: Any) -> Any:
        """A tensor, or each of an iterable of tensors, times the factor."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, Tensor):
            return outputs * self._scale
        if isinstance(outputs, Iterable):
            return type(outputs)(self.scale(o) for o in outputs)  # type: ignore[call-arg]
        raise ValueError("outputs must be a Tensor or an iterable of Tensors")

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of an optimiser's parameters by the factor, in place; `step` does it if nobody has.

        Raises:
            RuntimeError: called twice since `update`, or after `step`.
        """
        if not self._enabled:
            return
        if id(optimizer) in self._stepped:
            raise RuntimeError("unscale_() is being called after step().")
        if id(optimizer) in self._found:
            raise RuntimeError("unscale_() has already been called on this optimizer since the last update().")
        params = [p for group in optimizer.param_groups for p in group["params"]]
        grads = [p._grad for p in params if p._grad is not None]
        if not grads:
            raise AssertionError("No inf checks were recorded for this optimizer.")
        with modes.no_grad():
            update("mul_", _times, (0,), [(g,) for g in grads], (1.0 / self._scale,))
            self._found[id(optimizer)] = float(total("isfinite", _nothing, grads)) != 0.0

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        """optimizer.step(), unless a gradient is not finite; returns what it returns.

        Raises:
            RuntimeError: called twice since `update`, or with a closure.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if "closure" in kwargs:
            raise RuntimeError("Closure use is not currently supported if GradScaler is enabled.")
        if id(optimizer) in self._stepped:
            raise RuntimeError("step() has already been called since the last update().")
        if id(optimizer) not in self._found:
            self.unscale_(optimizer)
        self._stepped.add(id(optimizer))
        return None if self._found[id(optimizer)] else optimizer.step(*args, **kwargs)

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Set the factor of the next step by what was found, or to `new_scale`.

        Raises:
            AssertionError: no optimiser was stepped or unscaled since the last update.
        """
        if not self._enabled:
            return
        if new_scale is not None:
            self._scale = float(new_scale)
        else:
            if not self._found:
                raise AssertionError("No inf checks were recorded prior to update.")
            if any(self._found.values()):
                self._scale *= self._backoff_factor
                self._growth_tracker = 0
            else:
                self._growth_tracker += 1
                if self._growth_tracker == self._growth_interval:
                    self._scale *= self._growth_factor
                    self._growth_tracker = 0
        self._found.clear()
        self._stepped.clear()

    def state_dict(self) -> dict[str, Any]:
        """The factor, how it changes, and the good steps so far; {} if not enabled."""
        if not self._enabled:
            return {}
        return {
            "scale": self._scale, "growth_factor": self._growth_factor, "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval, "_growth_tracker": self._growth_tracker,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state.

        Raises:
            RuntimeError: it is empty: of a scaler that was not enabled.
        """
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError(
                "The source state dict is empty, possibly because it was saved from a disabled instance of GradScaler."
            )
        self._scale = state_dict["scale"]
        self._growth_factor, self._backoff_factor = state_dict["growth_factor"], state_dict["backoff_factor"]
        self._growth_interval, self._growth_tracker = state_dict["growth_interval"], state_dict["_growth_tracker"]


__all__ = ["GradScaler", "autocast", "get_autocast_dtype", "is_autocast_enabled"]
