"""Paths as people paste them: from a file manager, a browser's address bar, a terminal. stdlib only."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

QUOTES = ('""', "''", "\u201c\u201d", "\u201e\u201c", "\u2018\u2019", "\u00ab\u00bb")  # and typographic ones
INVISIBLE = "\u200b\u200e\u200f\u202a\u202b\u202c\u2066\u2067\u2068\u2069\ufeff"  # Windows' dialogs copy some of them


def pasted_path(text: str) -> str:
    """The path that was meant: without blanks and quotes around it, `~` expanded, a file:// URL as the path it names.

    Whatever is none of these stays as it is, a Hub id or a URL of the web among them.
    """
    before = None
    while text != before:
        before, text = text, text.strip().strip(INVISIBLE)
        if len(text) > 1 and text[0] + text[-1] in QUOTES:
            text = text[1:-1]
    if text.lower().startswith("file:/"):
        text = path_of_url(text)
    return str(home_of(text)) if text.startswith("~") else text


def path_of_url(url: str) -> str:
    """The path in a file: URL of this machine, blanks escaped or not; a URL of another machine as it is."""
    host = urlsplit(url).netloc
    rest = url.partition(":")[2]
    if rest.startswith("//"):
        rest = rest[2 + len(host) :]
    return unquote(rest) if host.lower() in ("", "localhost") else url


def home_of(text: str) -> Path | str:
    """Put the home folder in place of ~ or ~name; leave it as it is where there is no such person."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return text
