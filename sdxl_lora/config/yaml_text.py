"""YAML in which text stays text: a trigger word `no`, `0123`, `1e3` or `12:30` is what stands there."""

from typing import Any, ClassVar

import yaml


class TextLoader(yaml.SafeLoader):
    """Nothing is None; every other value is a text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def load_text(text: str) -> Any:
    """
    Raises:
        yaml.YAMLError: not YAML.
    """
    return yaml.load(text, Loader=TextLoader)
