"""Recordings: a run as bytes, and back."""

from zerver.trace.recording.run import Recording as Recording
from zerver.trace.recording.run import decode_run as decode_run
from zerver.trace.recording.run import encode_run as encode_run
