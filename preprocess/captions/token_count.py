"""Token counts of captions for CLIP, which reads 75 tokens at once."""

import re
from collections.abc import Callable
from pathlib import Path

from sdxl_lora.config.trigger_word import has_trigger_word
from sdxl_lora.errors import ConfigError

CHUNK = 75
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+", re.IGNORECASE)  # each is one token at least

Tokenize = Callable[[str], list[str]]


def least_tokens(text: str) -> list[str]:
    """Return the pieces that CLIP's tokenizer starts from; it may split them further."""
    return PIECES.findall(text)


def load_tokenizer(name: str | None) -> tuple[Tokenize, bool]:
    """Return a function from text to tokens, and whether it is CLIP's own tokenizer.

    Args:
        name: folder or Hub id of an SDXL base or of a tokenizer; None for SDXL's if it is in the Hub's cache, else for
            least_tokens.
    Raises:
        ConfigError: no tokenizer under that name.
    """
    if name is None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(SDXL, "tokenizer/vocab.json")
        if not isinstance(cached, str):
            return least_tokens, False
        name = str(Path(cached).parent)
    from transformers import CLIPTokenizer

    # transformers 5 makes up a tokenizer for a folder without one
    if Path(name).is_dir() and not any(Path(name).rglob("vocab.json")) and not any(Path(name).rglob("tokenizer.json")):
        raise ConfigError(f"tokenizer {name} holds neither vocab.json nor tokenizer.json")
    is_base = not Path(name).is_dir() or (Path(name) / "tokenizer").is_dir()
    try:
        tokenizer = CLIPTokenizer.from_pretrained(name, subfolder="tokenizer" if is_base else "")
    except (OSError, ValueError) as error:
        raise ConfigError(f"tokenizer {name}: {str(error).splitlines()[0]}") from None
    return tokenizer.tokenize, True


def caption_problems(text: str, trigger_word: str, tokenize: Tokenize) -> tuple[int, list[str]]:
    """Return the number of tokens of the text, and the problems to report about it."""
    count, problems = len(tokenize(text)), []
    if count > CHUNK:
        problems.append(f"{count} tokens, more than the {CHUNK} that CLIP reads at once")
    if trigger_word and not has_trigger_word(text, trigger_word):
        problems.append(f"the trigger word {trigger_word} is missing")
    if not text.strip():
        problems.append("no text at all")
    return count, problems
