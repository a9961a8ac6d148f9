"""The exceptions that the commands turn into one line on stderr (`ssl3d.command`)."""


class UserError(Exception):
    """A usage or input error: something that the person can mend. Exit status 2.

    The message is one plain line that names the file or key, says what is wrong and what to do.
    """


class RunError(Exception):
    """A run that had to stop, e.g. on a non-finite loss. Exit status 1; the message as above."""


class DivergedError(RunError):
    """A loss, a gradient or a validation that is not finite."""
