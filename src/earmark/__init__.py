"""Earmark: teach a speech model which words matter.

>>> from earmark import TermRetriever
>>> model = TermRetriever("data/demo/models/retriever")
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["TermRetriever"]


def __getattr__(name: str) -> Any:
    # On first use only: the model needs torch, which most of the package does not.
    if name == "TermRetriever":
        from earmark.retrieval.model import TermRetriever

        return TermRetriever
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
