"""What can go wrong, and the exit status it ends with. Every message is one line for the user."""


class ResreproError(Exception):
    """Something failed that the user can understand and mend: exit status 1."""

    status = 1


class ConfigError(ResreproError):
    """The configuration or the arguments are wrong: exit status 2."""

    status = 2


class Locked(ResreproError):  # noqa: N818 (it passes)
    """Another process writes there."""


class Diverged(ResreproError):  # noqa: N818 (it is a state of a run)
    """The loss stopped being a finite number."""


class Interrupted(BaseException):
    """A signal asked the program to stop; what there was is saved.

    Not an `Exception`, like KeyboardInterrupt: whoever catches a failed run to go on with the
    next one must not go on after this.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.status = 128 + signal_number


def one_line(error: BaseException) -> str:
    """An exception as one line; a system error with the file it speaks of."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
