"""Writes a checkpoint anew with other statistics, in one step, without running it."""
