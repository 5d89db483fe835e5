"""Fields of a config as data: section, type, range, resume rule and help, all read from their single declaration.

A config is a frozen dataclass with a few fields of its own and sections that are frozen dataclasses too. Users see it
flat: a flag, YAML key or widget goes by the field's name alone, whatever its section.
"""

import ast
import dataclasses
import enum
import inspect
import math
import operator
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MultipleOf

from sdxl_lora.config.paths import pasted_path

Config = TypeVar("Config")


class ResumeRule(enum.Enum):
    """The rule for changing a setting when a run resumes."""

    SAME = "the value must be that of the run before"
    BY_CONTENT = "what it leads to is compared: weights, images, a number of images per step"
    FREE = "it may change"


SAME, BY_CONTENT, FREE = ResumeRule
LARGEST = 2**63  # integers from here on do not fit into 64 bits
SET: tuple = ()  # in applies_when: any truthy value
PATH = "path"  # a path or Hub id; pasted_path cleans up `~`, quotes and surrounding blanks


@dataclasses.dataclass(frozen=True)
class AppliesWhen:
    """The rule that a setting has an effect only while one of some other settings has one of the given values.

    others: these values by the other setting's name; SET for any truthy value.
    """

    others: tuple[tuple[str, tuple], ...]

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Return whether the rule holds for the values of all settings."""
        return any(values[name] in wanted if wanted else bool(values[name]) for name, wanted in self.others)

    def __str__(self) -> str:
        return " or ".join(f"{name} {one_of(wanted)}".strip() for name, wanted in self.others)


def one_of(values: Sequence) -> str:
    """Join values in words: "cosine, linear or wsd"."""
    *first, last = map(str, values) if values else [""]
    return f"{', '.join(first)} or {last}" if first else last


def applies_when(**others: tuple) -> AppliesWhen:
    """Return the annotation of a conditional setting, e.g. applies_when(loss_type=("huber",))."""
    return AppliesWhen(tuple(others.items()))


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting.

    section: the config's attribute that holds it; None for a field of the config itself.
    type: the type without its annotations. rules: these annotations.
    """

    name: str
    section: str | None
    title: str
    type: Any
    default: Any
    help: str
    rules: tuple[Any, ...]

    @property
    def resume_rule(self) -> ResumeRule | None:
        return next((rule for rule in self.rules if isinstance(rule, ResumeRule)), None)

    @property
    def applies_when(self) -> AppliesWhen | None:
        """Return the condition under which the setting has an effect; None for always."""
        return next((rule for rule in self.rules if isinstance(rule, AppliesWhen)), None)

    @property
    def is_path(self) -> bool:
        return PATH in self.rules

    @property
    def is_required(self) -> bool:
        return self.default is dataclasses.MISSING


def flat_fields(config_class: type) -> dict[str, Field]:
    """Return all settings of a config by name, in the order of their sections."""
    return _flat_fields(config_class)


@cache
def _flat_fields(config_class: type) -> dict[str, Field]:
    found: dict[str, Field] = {}
    hints = get_type_hints(config_class, include_extras=True)
    for field in dataclasses.fields(config_class):
        kind = hints[field.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            title = (kind.__doc__ or "").partition("\n")[0].rstrip(".")
            found |= dict(_fields_of_section(kind, field.name, title))
        else:
            found |= dict(_fields_of_section(config_class, None, "Run", only=field.name))
    return found


def _fields_of_section(section_class: type, section: str | None, title: str, only: str | None = None):
    hints, helps = get_type_hints(section_class, include_extras=True), field_docs(section_class)
    for field in dataclasses.fields(section_class):
        if only in (None, field.name):
            hint = hints[field.name]
            kind, *rules = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            yield field.name, Field(field.name, section, title, kind, field.default, helps[field.name], tuple(rules))


def field_docs(config_class: type) -> dict[str, str]:
    """Return the text below each field."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body[0]
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for statement, below in pairwise(definition.body):
        if isinstance(statement, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(statement.target, ast.Name) and isinstance(below.value, ast.Constant)
            docs[statement.target.id] = " ".join(str(below.value.value).split())
    return docs


def flat_values(config: Any) -> dict[str, Any]:
    """Return every setting's value by name."""
    return {
        name: getattr(getattr(config, field.section) if field.section else config, name)
        for name, field in flat_fields(type(config)).items()
    }


def from_flat(config_class: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a config from settings by name; the others keep their defaults.

    Raises:
        TypeError: a name is no setting.
        ConfigError: values are invalid; reports all problems.
    """
    fields = flat_fields(config_class)
    if unknown := set(values) - set(fields):
        raise TypeError(f"{config_class.__name__} has no setting {', '.join(sorted(unknown))}")
    own: dict[str, Any] = {}
    of_sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section = fields[name].section
        (own if section is None else of_sections.setdefault(section, {}))[name] = value
    hints = get_type_hints(config_class)
    return config_class(**own, **{section: hints[section](**of_it) for section, of_it in of_sections.items()})


def replace_flat(config: Config, **changes: Any) -> Config:
    """Return a copy with some settings changed, like `dataclasses.replace` but by name across sections."""
    return from_flat(type(config), {**flat_values(config), **changes})


def idle_settings(config: Any) -> list[str]:
    """Return a sentence for each non-default setting that the other settings leave without effect."""
    values = flat_values(config)
    return [
        f"{name} has no effect: it is for {rule}"
        for name, field in flat_fields(type(config)).items()
        if (rule := field.applies_when) and values[name] != field.default and not rule.holds(values)
    ]


def tidy_paths(config: Any) -> None:
    """Clean up the paths among a config's settings in place; see PATH. Called from `__post_init__`."""
    for name, field in flat_fields(type(config)).items():
        holder = getattr(config, field.section) if field.section else config
        value = getattr(holder, name)
        if field.is_path and value is not None:
            tidy = pasted_path(value) if isinstance(value, str) else tuple(map(pasted_path, value))
            object.__setattr__(holder, name, tidy)


def range_problems(config: Any) -> list[str]:
    """Return a sentence for each number out of its field's range, NaN included, and each integer of 2^63 or more."""
    values = flat_values(config)
    problems = []
    for name, field in flat_fields(type(config)).items():
        value, bounds = values[name], [rule for rule in field.rules if isinstance(rule, Gt | Ge | Lt | Le | MultipleOf)]
        if isinstance(value, int | float) and bounds and not _is_within(value, bounds):
            problems.append(f"{name} is {value}, it must be {range_text(bounds)}")
        elif isinstance(value, int) and value >= LARGEST:
            problems.append(f"{name} is {value}, it must be below 2^63")
    return problems


def _is_within(value: float, bounds: list) -> bool:
    return math.isfinite(value) and all(_holds(value, bound) for bound in bounds)


def _holds(value: float, bound: Gt | Ge | Lt | Le | MultipleOf) -> bool:
    match bound:
        case Gt(gt=low):
            return operator.gt(value, low)
        case Ge(ge=low):
            return operator.ge(value, low)
        case Lt(lt=high):
            return operator.lt(value, high)
        case Le(le=high):
            return operator.le(value, high)
    return operator.mod(value, bound.multiple_of) == 0


def range_text(bounds: list) -> str:
    """Describe a range in words: "above 0", "at least 0 and below 1"."""
    words = {
        Gt: "above {gt}",
        Ge: "at least {ge}",
        Lt: "below {lt}",
        Le: "at most {le}",
        MultipleOf: "a multiple of {multiple_of}",
    }
    if bounds == [Ge(0)]:
        return "0 or more"
    text = " and ".join(words[type(bound)].format(**dataclasses.asdict(bound)) for bound in bounds)
    return text.replace(str(2**63), "2^63")
