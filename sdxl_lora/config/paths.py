"""Paths as people paste them from a file manager, a browser's address bar or a terminal. stdlib only."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

QUOTES = ('""', "''", "\u201c\u201d", "\u201e\u201c", "\u2018\u2019", "\u00ab\u00bb")  # and typographic ones
INVISIBLE = "\u200b\u200e\u200f\u202a\u202b\u202c\u2066\u2067\u2068\u2069\ufeff"  # Windows' dialogs copy some of them


def pasted_path(text: str) -> str:
    """Return the intended path: no surrounding blanks or quotes, `~` expanded, a file:// URL turned into its path.

    Anything else, such as a Hub id or a web URL, stays unchanged.
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
    """Return the path of a file: URL on this machine, unquoted; a URL of another machine stays unchanged."""
    host = urlsplit(url).netloc
    rest = url.partition(":")[2]
    if rest.startswith("//"):
        rest = rest[2 + len(host) :]
    return unquote(rest) if host.lower() in ("", "localhost") else url


def home_of(text: str) -> Path | str:
    """Expand ~ or ~name to the home folder; return the text unchanged if no such user exists."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return text
