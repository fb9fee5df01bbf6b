"""The exceptions that saltlm raises on purpose: one base class and two subclasses."""


class SaltlmError(Exception):
    """Base class of every exception that saltlm raises on purpose."""


class InputError(SaltlmError, ValueError):
    """Bad input. The message says what was found, what was expected and what to do. The command line exits with 2."""


class BackendError(SaltlmError, RuntimeError):
    """Something other than the input failed (a compiled part, the file system). The command line exits with 1."""


def input_error(what: str, found: str, expected: str, advice: str) -> InputError:
    """Build an :class:`InputError` with the message ``WHAT: found FOUND; expected EXPECTED; ADVICE``."""
    return InputError(printable(f"{what}: found {found}; expected {expected}; {advice}"))


def printable(text: str) -> str:
    r"""The text with escapes for control characters and other characters that a terminal would obey or not show.

    Line ends are kept.

    Example:
        >>> printable("a\x1b[31m\nb")
        'a\\x1b[31m\nb'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def first_line(error: BaseException) -> str:
    """First line of the error's text, or the name of its class where it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
