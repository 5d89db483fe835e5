"""The page's own JavaScript: each script with its constants, and what it says in the languages of the page."""

import json
import re
from pathlib import Path

from webui.locale.i18n import LOCALES

SAY = """((texts) => (text, facts = {}) => (texts[navigator.language.slice(0, 2)]?.[text] ?? text)
  .replace(/\\{(\\w+)\\}/g, (braces, name) => facts[name] ?? braces))(TEXTS)"""


def texts_in(source: str) -> list[str]:
    """The texts that a script says: `say("...", facts)`."""
    return [json.loads(text) for text in re.findall(r'\bsay\(\s*("[^"\\]*")', source)]


def script(path: Path, **constants: object) -> str:
    """A script; `SAY` in it becomes the function that says a text, with the facts in its braces, in the browser's
    and each of the other constants its value."""
    source = path.read_text(encoding="utf-8")
    texts = {language: {text: known.texts[text] for text in texts_in(source)} for language, known in LOCALES.items()}
    values = {name: json.dumps(value) for name, value in constants.items()}
    values["SAY"] = SAY.replace("TEXTS", json.dumps(texts, ensure_ascii=False))
    return re.sub(rf"\b({'|'.join(values)})\b", lambda match: values[match[1]], source)
