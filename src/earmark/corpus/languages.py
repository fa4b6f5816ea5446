"""Languages as corpora name them: codes, or English names."""

from __future__ import annotations

import re

_CODE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*")
_CODES = {
    "arabic": "ar",
    "cantonese": "yue",
    "catalan": "ca",
    "chinese": "zh",
    "czech": "cs",
    "dutch": "nl",
    "english": "en",
    "french": "fr",
    "german": "de",
    "hindi": "hi",
    "indonesian": "id",
    "italian": "it",
    "japanese": "ja",
    "korean": "ko",
    "mandarin": "zh",
    "polish": "pl",
    "portuguese": "pt",
    "russian": "ru",
    "spanish": "es",
    "swedish": "sv",
    "thai": "th",
    "turkish": "tr",
    "ukrainian": "uk",
    "vietnamese": "vi",
}


def language_code(name: str) -> str | None:
    """`name` where it looks like a code (en, en-US, yue), the code of a common language's English name, or None."""
    name = name.strip()
    return name if _CODE.fullmatch(name) else _CODES.get(name.casefold())
