"""The exception family. A message says what is wrong, where, and what to do."""


class EarmarkError(Exception):
    """Something a user can put right: bad input, bad configuration, a missing model."""


class ConfigError(EarmarkError):
    """The configuration is not usable."""


class InputError(EarmarkError):
    """A file the user gave cannot be read or does not hold what it should."""


class AudioError(InputError):
    """An audio file is missing, unreadable, or not usable speech."""


class TooManyRejectedError(EarmarkError):
    """A stage rejected more rows than `max_rejected_fraction` allows."""


def first_line(error: BaseException) -> str:
    """The first line of what a library's error says, or its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
