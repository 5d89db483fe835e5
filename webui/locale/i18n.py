"""The page's languages. The code has the English texts; <language>.json beside this module has all others:

texts: by the English text, with placeholders in {braces}
fields: label and help of each setting, by config
problems: sentences of ConfigErrors, in which {name} matches any text; the first that matches counts. A {reason} is
    translated as a problem itself, where it is one
requirements: texts for {requirement} in a problem; a problem with an unknown one stays in English

en.json has the labels that do not follow from a setting's name, and the help of the settings in view, for readers who
know no flags; the others use the command line's help.

`T(text)` is for fixed texts of the page: Gradio's I18n lets the browser choose the language. `say(text, ...)` is for
texts made in answer to a request, whose Accept-Language header chooses it.
"""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from gradio import I18n
from gradio.context import LocalContext

from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from webui.settings.fields import fields_of

Patterns = list[tuple[re.Pattern, str]]
ACRONYMS = {"lr": "learning rate", "snr": "SNR", "vae": "VAE", "dora": "DoRA", "rslora": "rsLoRA", "lora": "LoRA",
            "tf32": "TF32", "8bit": "8-bit", "dir": "folder", "num": "number of", "hub": "Hub"}  # fmt: skip


class Locale:
    """Translations of one language, from its file."""

    def __init__(self, content: dict[str, Any]):
        self.texts: dict[str, str] = content["texts"]
        self.fields: dict[str, dict[str, dict[str, str]]] = content["fields"]
        self.problems = patterns(content["problems"])
        self.requirements = patterns(content["requirements"])

    def problem(self, sentence: str) -> str | None:
        for pattern, translation in self.problems:
            if match := pattern.fullmatch(sentence):
                facts = match.groupdict()
                if "requirement" in facts:
                    facts["requirement"] = self.requirement(facts["requirement"])
                if "reason" in facts:
                    facts["reason"] = self.problem(facts["reason"]) or facts["reason"]
                if None not in facts.values():
                    return translation.format(**facts)
        return None

    def requirement(self, words: str) -> str | None:
        found = ((pattern.fullmatch(words), translation) for pattern, translation in self.requirements)
        return next((translation.format(**match.groupdict()) for match, translation in found if match), None)

    def field(self, config_class: type, name: str) -> tuple[str, str]:
        """Return label and help of a setting, in English if the file lacks them."""
        told = self.fields[config_class.__name__].get(name, {})
        return told.get("label", label_of(config_class, name)), told.get("help", help_of(config_class, name))


def patterns(sentences: dict[str, str]) -> Patterns:
    """Return English sentences as patterns, with a group for each {name}, and their translations."""
    return [
        (re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(english)), re.DOTALL), translation)
        for english, translation in sentences.items()
    ]


FILES = sorted(Path(__file__).parent.glob("*.json"))
CONTENTS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FILES}
ENGLISH: dict[str, dict[str, dict[str, str]]] = CONTENTS.pop("en")["fields"]
LOCALES = {language: Locale(content) for language, content in CONTENTS.items()}
LANGUAGES = ("en", *LOCALES)


def label_of(config_class: type, name: str) -> str:
    """Return the English label of a setting."""
    words = " ".join(ACRONYMS.get(word, word) for word in name.split("_"))
    return ENGLISH[config_class.__name__].get(name, {}).get("label", words[0].upper() + words[1:])


def help_of(config_class: type, name: str) -> str:
    return ENGLISH[config_class.__name__].get(name, {}).get("help", fields_of(config_class)[name].help)


def key_of(text: str) -> str:
    """Return the key of a text in Gradio's dictionaries: the text itself, readable even without one.

    Braces become parentheses, since Gradio ends a key at its first brace.
    """
    return text.replace("{", "(").replace("}", ")")


def dictionaries() -> dict[str, dict[str, str]]:
    """Return the dictionaries for Gradio: by language, each text by its key."""
    by_language: dict[str, dict[str, str]] = {}
    english: dict[str, str] = {}
    for language, locale in LOCALES.items():
        texts = dict(locale.texts)
        for config_class in (PreprocessConfig, TrainConfig):
            for name in fields_of(config_class):
                label, help_ = locale.field(config_class, name)
                texts |= {label_of(config_class, name): label, help_of(config_class, name): help_}
        by_language[language] = {key_of(text): translation for text, translation in texts.items()}
        english |= {key_of(text): text for text in texts if key_of(text) != text}
    return {"en": english, **by_language}


I18N = I18n(**dictionaries())


def T(text: str):
    """Return the text in the browser's language."""
    return I18N(key_of(text))


def language() -> str:
    """Return the language of the request that is being answered; English without one."""
    request = LocalContext.request.get(None)
    return language_of(request.headers.get("accept-language", "")) if request is not None else "en"


@lru_cache(maxsize=64)  # requests choose its argument
def language_of(accepted: str) -> str:
    """Return the first of our languages in an Accept-Language header; English if it has none of them."""
    wanted = []
    for place, part in enumerate(accepted.split(",")):
        tag, _, quality = part.strip().partition(";q=")
        try:
            wanted.append((-float(quality or 1), place, tag[:2].lower()))
        except ValueError:
            continue
    return next((tag for _, _, tag in sorted(wanted) if tag in LANGUAGES), "en")


def say(text: str, **facts) -> str:
    """Return the text in the request's language, with the facts in its braces."""
    known = LOCALES.get(language())
    return (known.texts[text] if known else text).format(**facts)


def say_label(config_class: type, name: str) -> str:
    """Return a field's label on the page."""
    known = LOCALES.get(language())
    return known.field(config_class, name)[0] if known else label_of(config_class, name)


def say_problem(problem: str) -> str:
    """Return a ConfigError's sentence in the request's language; unknown ones stay as they are."""
    known = LOCALES.get(language())
    return (known.problem(problem) if known else None) or problem


def in_page_words(config_class: type, words: str) -> str:
    """Return a program's message about its settings with the page's labels in place of flags."""
    words = say_problem(words.removeprefix("error: "))
    first, _, rest = words.partition(" ")
    if first.removesuffix(":") in fields_of(config_class) and rest:
        words = f"{say_label(config_class, first.removesuffix(':'))}: {rest}"

    def label(flag: re.Match) -> str:
        known = (name for name in (flag[1], flag[1].removeprefix("no_")) if name in fields_of(config_class))
        return next((f"“{say_label(config_class, name)}”" for name in known), flag[0])

    return re.sub(r"(?<!\w)--(\w+)", label, words)
