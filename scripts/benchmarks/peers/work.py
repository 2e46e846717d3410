"""What every peer of the overload benchmark is asked to do: so much CPU in so many slices, and waits between them."""

import time

#: By class: slices of CPU in seconds, and the wait after each of them but the last.
SHAPES = {
    "interactive": ((0.00075, 0.00075), 0.010),
    "default": ((0.0015, 0.0015), 0.020),
    "batch": ((0.005, 0.005, 0.005, 0.005), 0.020),
}


def burn(seconds: float) -> None:
    """Use the CPU for so long, as the kernel counts it: what another process takes meanwhile is not ours."""
    ends = time.thread_time() + seconds
    while time.thread_time() < ends:
        pass
