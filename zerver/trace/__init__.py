"""What happened: the timeline as text, the last runs in memory, and the same run once more from its records."""

from zerver.trace.replay import Divergence as Divergence
from zerver.trace.replay import Inputs as Inputs
from zerver.trace.replay import Replayed as Replayed
from zerver.trace.replay import replay as replay
from zerver.trace.ring import Ring as Ring
from zerver.trace.ring import RingStatistics as RingStatistics
from zerver.trace.text import format_timeline as format_timeline
