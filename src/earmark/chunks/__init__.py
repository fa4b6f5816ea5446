"""Stages chunks and merge: audio around every spoken term, no-term chunks, and their splits."""
