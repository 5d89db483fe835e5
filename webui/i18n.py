"""English and French. Texts stand in the code in English; french.py has their other half.

`T(text)` is for what stands still on the page: Gradio's I18n lets the browser choose. `say(language, text, ...)` is for
what is told while things happen: it goes by the browser's Accept-Language.
"""

import re

from gradio import I18n

from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from webui.fields import fields_of
from webui.french import PROBLEMS, TEXTS
from webui.french_fields import FIELDS
from webui.labels import label_of

LANGUAGES = ("en", "fr")


def key_of(text: str) -> str:
    """Under which Gradio looks a text up: the text itself, so that it reads well where there is no dictionary. Gradio
    takes a key to end at its first brace."""
    return text.replace("{", "(").replace("}", ")")


def french_of(config_class: type, name: str) -> tuple[str, str]:
    """Label and help of a field; English ones until it has its line in french_fields.py."""
    english = label_of(config_class, name), fields_of(config_class)[name].help
    return FIELDS[config_class.__name__].get(name, english)


def dictionaries() -> dict[str, dict[str, str]]:
    french, english = dict(TEXTS), {}
    for config_class in (PreprocessConfig, TrainConfig):
        for name, field in fields_of(config_class).items():
            label, help_ = french_of(config_class, name)
            french |= {label_of(config_class, name): label, field.help: help_}
    english = {key_of(text): text for text in french if key_of(text) != text}
    return {"en": english, "fr": {key_of(text): translation for text, translation in french.items()}}


I18N = I18n(**dictionaries())


def T(text: str):
    """The text in the browser's language."""
    return I18N(key_of(text))


def say(language: str, text: str, **facts) -> str:
    """The text in this language, with the facts in its braces."""
    return (TEXTS[text] if language == "fr" else text).format(**facts)


def say_label(language: str, config_class: type, name: str) -> str:
    """What the page calls a field."""
    return french_of(config_class, name)[0] if language == "fr" else label_of(config_class, name)


def say_problem(language: str, problem: str) -> str:
    """A sentence of a ConfigError. Those that french.py does not know stay as they are."""
    if language == "fr":
        for pattern, translation in PROBLEMS:
            if match := re.fullmatch(pattern, problem):
                return match.expand(translation)
    return problem


def language_of(request) -> str:
    """The first of our languages that the browser asks for; English where it asks for none of them."""
    header = request.headers.get("accept-language", "") if request is not None else ""
    wanted = []
    for place, part in enumerate(header.split(",")):
        tag, _, quality = part.strip().partition(";q=")
        try:
            wanted.append((-float(quality or 1), place, tag[:2].lower()))
        except ValueError:
            continue
    return next((tag for _, _, tag in sorted(wanted) if tag in LANGUAGES), "en")
