"""What the stack says when it cannot go on."""


class StackError(Exception):
    """Something a person must decide or repair; the message says what, and how."""
