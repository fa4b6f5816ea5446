"""`python -m earmark.speech_llm ...`, or under torchrun for several processes: the same as `earmark finetune ...`."""

from __future__ import annotations

import logging
import sys

from earmark.errors import EarmarkError
from earmark.speech_llm.settings import parse_settings
from earmark.speech_llm.train import finetune


def main() -> int:
    """Fine-tune; an EarmarkError is printed as one sentence and gives exit status 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        finetune(parse_settings(sys.argv[1:], "python -m earmark.speech_llm"))
    except (EarmarkError, OSError) as error:
        print(f"earmark: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
