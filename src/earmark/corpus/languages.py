"""Languages as corpora name them: codes, or English names."""

from __future__ import annotations

_CODES = {
    "arabic": "ar",
    "cantonese": "yue",
    "catalan": "ca",
    "chinese": "zh",
    "czech": "cs",
    "dutch": "nl",
    "eng": "en",
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


def language_code(name: str) -> str:
    """The code of a common language's English name or three-letter code; anything else (en-US, yue, Tamil) as it is."""
    name = name.strip()
    return _CODES.get(name.casefold(), name)
