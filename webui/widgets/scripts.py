"""The page's own JavaScript: scripts with their constants and the translations of their texts."""

import json
import re
from pathlib import Path

from webui.locale.i18n import LOCALES

SAY = """((texts) => (text, facts = {}) => (texts[navigator.language.slice(0, 2)]?.[text] ?? text)
  .replace(/\\{(\\w+)\\}/g, (braces, name) => facts[name] ?? braces))(TEXTS)"""


def texts_in(source: str) -> list[str]:
    """Return the texts of a script's calls `say("...", facts)`."""
    return [json.loads(text) for text in re.findall(r'\bsay\(\s*("[^"\\]*")', source)]


def script(path: Path, **constants: object) -> str:
    """Return a script with its constants filled in.

    `SAY` becomes the function that returns a text in the browser's language with the facts in its braces.
    """
    source = path.read_text(encoding="utf-8")
    texts = {language: {text: known.texts[text] for text in texts_in(source)} for language, known in LOCALES.items()}
    values = {name: json.dumps(value) for name, value in constants.items()}
    values["SAY"] = SAY.replace("TEXTS", json.dumps(texts, ensure_ascii=False))
    return re.sub(rf"\b({'|'.join(values)})\b", lambda match: values[match[1]], source)
