"""The exceptions that saltlm raises on purpose: one base class and two subclasses."""


class SaltlmError(Exception):
    """Base class of every exception that saltlm raises on purpose."""


class InputError(SaltlmError, ValueError):
    """Bad input. The message says what was found, what was expected and what to do. The command line exits with 2."""


class BackendError(SaltlmError, RuntimeError):
    """Something other than the input failed (a compiled part, the file system). The command line exits with 1."""


def input_error(what: str, found: str, expected: str, advice: str) -> InputError:
    """Build an :class:`InputError` with the message ``WHAT: found FOUND; expected EXPECTED; ADVICE``."""
    return InputError(f"{what}: found {found}; expected {expected}; {advice}")


def first_line(error: BaseException) -> str:
    """First line of the error's text, or the name of its class where it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
