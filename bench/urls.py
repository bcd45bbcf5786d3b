"""Passwords in URLs: a command line is seen and kept by others, and so is what a run prints and writes."""

from __future__ import annotations

import re

from bench.errors import UserError

NAMES = "passw|pwd|token|secret|(?<![a-z])sig|access_?key|api_?key"  # in the name of a value of the query
# what holds one, and the same without it; abfs://container@account and ftp://me@host hold none
SECRETS = (
    (re.compile(r"(https?://)[^/@\s]+@", re.I), r"\1***@"),  # the name alone may be a token
    # SQLAlchemy takes a password with a slash in it; what stands behind a port is a path
    (re.compile(r"(://)[^/@\s]*:(?!\d+(?:[/?#]|$))\S*@"), r"\1***@"),
    (re.compile(rf"([?&][^=&#\s]*(?:{NAMES})[^=&#\s]*=)[^&#\s]+", re.I), r"\1***"),
)


def masked(text: str) -> str:
    """The text with *** for what may be a password in the URLs it holds."""
    for secret, without in SECRETS:
        text = secret.sub(without, text)
    return text


def refuse_password(option: str, url: str, instead: str) -> None:
    """UserError for a URL that holds a password, naming where it may stand instead."""
    if masked(url) != url:
        raise UserError(f"{option} {masked(url)} holds a password: {instead}")
