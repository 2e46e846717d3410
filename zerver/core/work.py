"""Work: what a run of one flow costs, learnt from its runs that have ended.

Law: an estimate steers and never judges: an unknown flow is served, an expensive one pays in its tenant's place in the
queue, and none is refused for what it costs.
"""

from __future__ import annotations

from typing import Final

#: The weight of the newest run, once there have been 50. Before, each run counts alike.
ALPHA: Final = 0.02

#: Seconds of CPU: less is not believed, for admission alone costs something, and a run that is free could be repeated
#: for ever without moving its tenant back in the queue.
LEAST: Final = 1e-4

_STEP: Final = 1.05


class Work:
    """What one flow's runs cost. One per plan; whoever admits asks it, and `learn` corrects it.

    cpu: seconds of steps, a moving mean; None until a run has ended. duration: seconds from ticket to end, a moving
    median: one run that was parked for an hour says nothing about the next.
    """

    __slots__ = ("cpu", "duration", "runs")

    def __init__(self, cpu: float | None = None, duration: float = 0.0) -> None:
        self.cpu = cpu
        self.duration = duration
        self.runs = 0

    def learn(self, cpu: float, duration: float) -> None:
        """A run has ended. Both in seconds."""
        runs = self.runs = self.runs + 1
        known, usual = self.cpu, self.duration
        self.cpu = cpu if known is None else known + (cpu - known) * (ALPHA if runs > 50 else 1.0 / runs)
        # A median in one number (Ma, Muthukrishnan and Sandler 2013, "Frugal streaming"), in steps of 5 %.
        if runs > 1:
            duration = usual * _STEP if duration > usual else usual / _STEP
        self.duration = duration if duration > LEAST else LEAST
