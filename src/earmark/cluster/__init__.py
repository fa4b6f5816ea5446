"""Watching a run: what it was asked for, what its jobs do and did, and whether this machine can run it at all."""
