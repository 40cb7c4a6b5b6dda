"""The one exception whose message is written for the person at the keyboard."""

INSTALL = "pip install '.[{extra}]' in a clone of the repository"  # the name is in no registry


class UserError(Exception):
    """Something the user can put right: one line that says what is wrong and what to do."""
