"""Credentials in what is printed or stored."""

import re


def mask(text: str) -> str:
    """The text, with *** for the credentials of every URI in it."""
    text = re.sub(r"://(?:[^\s'\"/@]*:[^\s'\"]*|[^\s'\"/]*)@", "://***@", text)
    return re.sub(r"(?i)([?&;][^=&;\s]*(?:pass|pwd|secret|token|key|odbc)[^=&;\s]*=)[^&;\s'\"]+", r"\1***", text)
