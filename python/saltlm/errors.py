"""The errors a caller can meet: one base class, two kinds."""


class SaltlmError(Exception):
    """Base of every error saltlm raises on purpose."""


class InputError(SaltlmError, ValueError):
    """Bad input: the message says what was given, what was expected and what to do. The command line exits with 2."""


class BackendError(SaltlmError, RuntimeError):
    """Something outside the input failed (a compiled part, the file system); the command line exits with 1."""


def input_error(what: str, found: str, expected: str, advice: str) -> InputError:
    """Build an :class:`InputError` in the house form ``WHAT: found FOUND; expected EXPECTED; ADVICE``."""
    return InputError(f"{what}: found {found}; expected {expected}; {advice}")


def first_line(error: BaseException) -> str:
    """First line of the error's text, or the name of its class where it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
