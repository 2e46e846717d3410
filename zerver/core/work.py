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
        self.runs += 1
        known = self.cpu
        if known is None:
            self.cpu = cpu
        else:
            self.cpu = known + (cpu - known) * (ALPHA if self.runs > 50 else 1.0 / self.runs)
        # A median in one number (Ma, Muthukrishnan and Sandler 2013, "Frugal streaming"), in steps of 5 %.
        if self.runs == 1:
            self.duration = max(LEAST, duration)
        elif duration > self.duration:
            self.duration *= _STEP
        else:
            shorter = self.duration / _STEP
            self.duration = shorter if shorter > LEAST else LEAST
