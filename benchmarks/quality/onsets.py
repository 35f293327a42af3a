"""Onsets of waveforms and their match with events, for any folder of clips."""

# The judge is the trainer's own: both measure the same thing.
from training.judge import Match, match, merged, onsets

__all__ = ["Match", "match", "merged", "onsets"]
