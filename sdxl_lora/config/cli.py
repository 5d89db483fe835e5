"""Parse the command line and YAML files into a config, and write a config as YAML."""

import argparse
import dataclasses
import difflib
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_type_hints

import tyro
import yaml

from sdxl_lora.config.fields import field_docs, flat_fields, flat_values
from sdxl_lora.config.paths import pasted_path
from sdxl_lora.errors import ConfigError

Config = TypeVar("Config")


def load_config(config_class: type[Config], argv: Sequence[str]) -> Config:
    """Return the config that a command line asks for; `--config FILE.yaml` may stand anywhere, and flags override it.

    The file's entries become flags in front of the others, so one parser checks both.

    Raises:
        SystemExit: code 2, after a message that names what is unknown or invalid and the closest known name; 0 after
            --help.
    """
    config_path, flags = split_config_flag(argv)
    try:
        file_flags = flags_of_yaml(config_class, config_path) if config_path else []
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    join_help_lines(config_class)
    return tyro.cli(
        config_class,
        prog=program(sys.argv[0]),
        args=spelled_out(config_class, [*file_flags, *flags]),
        description=f"{config_class.__doc__} --config FILE.yaml reads any of these from a file; a flag wins over it.",
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def join_help_lines(config_class: type) -> None:
    """Store every help text as one line where tyro looks first; of a docstring it keeps the line breaks."""
    for owner in (config_class, *get_type_hints(config_class).values()):
        if not (isinstance(owner, type) and dataclasses.is_dataclass(owner)):
            continue
        helps = field_docs(owner)
        for field in dataclasses.fields(owner):
            if field.name in helps:
                field.metadata = MappingProxyType({**field.metadata, "help": helps[field.name]})


def program(path: str) -> str:
    """Return the name of the running program as it is typed."""
    name = Path(path).name
    return f"python -m {Path(path).parent.name}" if name == "__main__.py" else name


def spelled_out(config_class: type, flags: Sequence[str]) -> list[str]:
    """Return the flags with `--x` and `--no_x` of on/off/auto settings spelled `--x=on` and `--x=off`."""
    switches = {f"--{name}" for name, field in flat_fields(config_class).items() if is_switch(field.type)}
    spelled = []
    for flag, following in itertools.zip_longest(flags, flags[1:], fillvalue="--"):
        if flag in switches and following.startswith("--"):
            flag = f"{flag}=on"
        elif flag.startswith("--no_") and f"--{flag[5:]}" in switches:
            flag = f"--{flag[5:]}=off"
        spelled.append(flag)
    return spelled


def is_switch(kind: Any) -> bool:
    """Return whether a setting takes on, off and auto."""
    return set(get_args(kind)) == {"auto", "on", "off"}


def split_config_flag(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the path given as `--config PATH` or `--config=PATH` (the last one counts) and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=lambda text: Path(pasted_path(text)))
    known, others = parser.parse_known_args(argv)
    return known.config, others


def flags_of_yaml(config_class: type, path: Path) -> list[str]:
    """Return the entries of a YAML file as command-line flags. Values stay text: YAML itself reads 1e-4 as a string.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping to scalars and lists (or to mappings, where a list
            of name=value is meant); or it has unknown keys, all reported at once with position and closest known name.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path} must hold lines of `name: value`")

    fields = flat_fields(config_class)
    flags, problems, seen = [], [], set()
    for key, value in root.value:
        where = f"{path}:{key.start_mark.line + 1}:{key.start_mark.column + 1}"
        name = str(key.value)
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            problems.append(f"{where}: unknown key {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
        elif name in seen:
            problems.append(f"{where}: {name!r} is given a second time")
        elif isinstance(value, yaml.MappingNode) and fields[name].type == tuple[str, ...] and is_flat(value):
            flags += [f"--{name}", *(f"{key.value}={item.value}" for key, item in value.value)]
        elif name == "datasets" and isinstance(value, yaml.SequenceNode) and all(map(is_flat, value.value)):
            flags += ["--datasets", *map(entry_text, value.value)]
        elif not (isinstance(value, yaml.ScalarNode) or (isinstance(value, yaml.SequenceNode) and is_flat(value))):
            problems.append(f"{where}: {name!r} must be a value or a list of values")
        elif isinstance(value, yaml.SequenceNode) and any(v.value.startswith("-") for v in value.value[1:]):
            problems.append(f"{where}: an item of {name!r} begins with a dash and would be read as a flag")
        else:
            is_bool = fields[name].type is bool or is_switch(fields[name].type)
            flags += flags_of_entry(name, value, is_bool, fields[name].type is str)
        seen.add(name)
    if problems:
        raise ConfigError("\n".join(problems))
    return flags


def entry_text(value: yaml.Node) -> str:
    """Return an item of `datasets` as its flag takes it: plain text, or a mapping on one line."""
    if isinstance(value, yaml.ScalarNode):
        return value.value
    value.flow_style = True
    for _, item in value.value:  # keep every value text, see yaml_text.py
        item.tag = item.tag if item.tag.endswith(":null") else "tag:yaml.org,2002:str"
    return yaml.serialize(value, Dumper=yaml.SafeDumper, width=math.inf, allow_unicode=True).strip()


def is_flat(value: yaml.Node) -> bool:
    """Return whether a node is a scalar, or a list or mapping of scalars only."""
    if isinstance(value, yaml.ScalarNode):
        return True
    items = (item for _, item in value.value) if isinstance(value, yaml.MappingNode) else value.value
    return all(isinstance(item, yaml.ScalarNode) for item in items)


def flags_of_entry(name: str, value: yaml.Node, is_bool: bool, is_text: bool) -> list[str]:
    if isinstance(value, yaml.SequenceNode):
        items = [item.value for item in value.value]
        if len(items) == 1:
            return [f"--{name}={items[0]}"]
        return [f"--{name}", *items]
    if value.tag == "tag:yaml.org,2002:null":
        return [f"--{name}="] if is_text else [f"--{name}=None"]
    if is_bool and value.tag == "tag:yaml.org,2002:bool":
        return [f"--{name}" if yaml.safe_load(value.value) else f"--no_{name}"]
    return [f"--{name}={value.value}"]


def to_yaml(config: Any) -> str:
    """Return the config as YAML text that `--config` reads back to an equal config."""
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in flat_values(config).items()}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
