"""YAML loader that keeps text as text: trigger words such as `no`, `0123`, `1e3` or `12:30` stay as written."""

from typing import Any, ClassVar

import yaml


class TextLoader(yaml.SafeLoader):
    """Loader that reads null as None and every other scalar as text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def load_text(text: str) -> Any:
    """Parse YAML, keeping scalars as text; raise yaml.YAMLError if it is not YAML."""
    return yaml.load(text, Loader=TextLoader)
