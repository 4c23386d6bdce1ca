"""The one exception a user is meant to read."""


class UserError(ValueError):
    """Bad input: the scripts print the message as one line and exit with a code that is not 0.

    The message says what was wrong, what was expected, and which key or `conf/` file to change.
    """
