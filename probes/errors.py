"""The one exception that bad input raises."""


class InputError(ValueError):
    """A value from the caller cannot be used; the message is one line that names the value, the place and the cure."""
