"""Search of a dataset's images: all, those with problems, or those whose captions have certain words or tags."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from preprocess.editing.prepared import Dataset, DatasetImage
from preprocess.editing.tags import PLAIN, Reading, same

SHOWN = ("all", "to look at", "without a caption")


@dataclass(frozen=True)
class Search:
    """A person's search.

    Attributes:
        words: terms between commas, all of which must match: words in the caption or [a tag] of it; a minus in front
            inverts a term.
        shown: one of SHOWN.
    """

    words: str = ""
    shown: str = "all"

    def images(self, dataset: Dataset, reading: Reading) -> list[DatasetImage]:
        """Return the images of the dataset that match, in its order."""
        terms = [term.strip() for term in self.words.split(",") if term.strip()]
        return [image for image in dataset.images if self.is_shown(image) and fits(image, terms, reading)]

    def is_shown(self, image: DatasetImage) -> bool:
        if self.shown == "to look at":
            return bool(image.problems)
        return self.shown != "without a caption" or not image.text.strip()


def fits(image: DatasetImage, terms: Sequence[str], reading: Reading) -> bool:
    tags = set(map(same, reading.tags(image.text)))
    text = same(image.text)
    for term in terms:
        is_without = term.startswith("-") and len(term) > 1
        wanted = term[1:].strip() if is_without else term
        if wanted.startswith("[") and wanted.endswith("]"):
            found = same(wanted[1:-1]) in tags
        else:
            found = same(wanted) in text or same(wanted) in same(image.source)
        if found == is_without:
            return False
    return True


@dataclass(frozen=True)
class View:
    """The part of a dataset that a browser shows."""

    name: str | None
    page: int = 0
    search: Search = Search()
    reading: Reading = PLAIN

    @classmethod
    def of(cls, facts: dict) -> "View":
        """Return the view that a browser sent as `facts`; without a dataset if they make no sense."""
        try:
            search, reading = Search(**facts["search"]), reading_of(**facts["reading"])
            return cls(str(facts["name"]) if facts["name"] else None, int(facts["page"]), search, reading)
        except (KeyError, TypeError, ValueError):
            return cls(None)

    def facts(self) -> dict:
        return asdict(self)


def reading_of(separator: object, keep_tokens: object, keep_tokens_separator: object) -> Reading:
    """Return the Reading that the training form's values describe; the default for values that are unusable."""
    count = keep_tokens if isinstance(keep_tokens, int | float) and keep_tokens > 0 else 0
    mark = keep_tokens_separator if isinstance(keep_tokens_separator, str) else None
    return Reading(separator if isinstance(separator, str) and separator else ",", int(count), mark or None)
