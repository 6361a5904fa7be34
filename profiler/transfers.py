"""How long moving bytes between the device and the host takes."""

from __future__ import annotations

from tgrad.device import compute
from tgrad.profiler import latency
from tgrad.storage import Storage
from tgrad.torch_host import HostMemory, arrive


def ms_per_byte(nbytes: int = 1 << 22) -> float:
    """Time to move a byte to the host, or back, the faster of two."""
    device = Storage(nbytes, compute)

    def there_and_back() -> None:
        host = HostMemory(device)
        arrive(host.bring(device))

    return min(latency.timed(there_and_back)[1].wall_ms for _ in range(2)) / (2 * nbytes)
