"""What is wrong with a checkpoint: one exception, whose message names the file."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, damaged, or of another model; the message names the file or the parameter."""
