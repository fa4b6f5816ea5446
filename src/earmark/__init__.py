"""Earmark: teach a speech model which words matter.

>>> from earmark import TermRetriever, search
>>> model = TermRetriever("data/demo/models/retriever")
>>> hits = search(Path("talk.flac"), Path("data/demo"))
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["EarmarkError", "Hit", "TermRetriever", "TermSearch", "search"]

_MODULES = {
    "EarmarkError": "earmark.errors",
    "Hit": "earmark.retrieval.search",
    "TermRetriever": "earmark.retrieval.model",
    "TermSearch": "earmark.retrieval.search",
    "search": "earmark.retrieval.search",
}


def __getattr__(name: str) -> Any:
    # On first use only: models need torch, which most of the package does not.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
