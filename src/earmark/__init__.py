"""Earmark: teach a speech model which words matter."""

__version__ = "0.1.0"
