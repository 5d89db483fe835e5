"""Scores of checkpoints at strengths, from embeddings, and a recommendation. Independent of models and files.

A score has three shares, each on a scale set by the run itself (docs/choosing.md gives the reasons):

    learned      position of images with the trigger word between the base's likeness to the training images (0) and
                 the likeness of training images among themselves (1); a copy of a training image counts as 0
    leak         position of images without the trigger word on the same kind of scale: that of prompts whose trigger
                 word was removed, plus that of all other prompts
    prompt lost  position of images between the base's match with their own prompts (0) and with other prompts (1)

The score is learned - leak - prompt lost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdxl_lora.select.choice import BASE, Cell

TIE = 0.005  # scores this close to the best are as good
FINALISTS = 4  # cells of the second round
LEAST_SPAN = 0.01  # of cosines between the two ends of a scale; a shorter one distinguishes nothing
COPY = 0.95  # correlation of thumbnails above which an image is called a copy
USUAL = 0.95  # share of the pairs of training images that a copy's correlation must exceed


@dataclass(frozen=True)
class Measured:
    """Images of one cell as numbers; rows are images. Numbers for which no model was given are None.

    features: (N, D) by the similarity model, of length 1.
    prompt_match: (N, P) cosines with each prompt's text, by CLIP.
    thumbnails: (N, T), see images.py.
    prompts: each image's prompt, as a number; calls_up: whether that prompt evokes the trained subject.
    """

    features: Tensor | None
    prompt_match: Tensor | None
    thumbnails: Tensor
    prompts: Sequence[int]
    calls_up: Sequence[bool]


@dataclass(frozen=True)
class Nearest:
    """Image, its nearest training image, and the correlation of their thumbnails."""

    image: int
    training_image: int
    correlation: float


@dataclass
class Score:
    """Numbers of a cell; None for those that could not be measured.

    likeness, likeness_without_trigger: mean cosines with the training images.
    variety: 1 - the mean cosine between seeds of a prompt, with the trigger word.
    copies: images that copy a training image, with or without the trigger word.
    """

    cell: Cell
    learned: float | None = None
    leak: float | None = None
    prompt_lost: float | None = None
    likeness: float | None = None
    likeness_without_trigger: float | None = None
    prompt_match: float | None = None
    variety: float | None = None
    nearest: Nearest | None = None
    copies: list[Nearest] = field(default_factory=list)

    @property
    def total(self) -> float | None:
        """Return the total of the measured shares; None where `learned` is unknown."""
        return None if self.learned is None else self.learned - (self.leak or 0) - (self.prompt_lost or 0)


class Scale:
    """Ends of the three scales: the base on one side, the training images and other prompts on the other.

    Args:
        training: features (M, D) of the training images, None without a similarity model.
        thumbnails: of the training images, (M, T).
        base: the images of the base alone.
    Attributes:
        left_out: a sentence with the reason for each number that cannot be measured.
    """

    def __init__(self, training: Tensor | None, thumbnails: Tensor, base: Measured):
        self.training, self.thumbnails, self.base = training, thumbnails, base
        self.copy_from = max(COPY, usual_correlation(thumbnails))
        self.left_out: list[str] = []
        self.among: float | None = None  # the mean cosine of the training images among themselves
        self.of_base: float | None = None
        self.of_base_without: list[float | None] = []  # see `groups_without`
        self.match_of_base: float | None = None
        self.match_of_others: float | None = None
        if training is None:
            self.left_out.append("learned, leak, likeness and variety: no similarity model was given")
        else:
            self._set_likeness(training)
        if base.prompt_match is None:
            self.left_out.append("prompt lost: no CLIP model was given")
        else:
            self._set_match(base.prompt_match)

    def _set_likeness(self, training: Tensor) -> None:
        likeness, called = self._likeness(self.base), torch.tensor(self.base.calls_up, dtype=torch.bool)
        self.among = mean_between(training)
        self.of_base = self._end("learned", likeness[called], "no prompt has the trigger word")
        groups = groups_without(self.base) or [~called]
        self.of_base_without = [
            self._end("leak", likeness[group], "no prompt is without a trigger word") for group in groups
        ]

    def _end(self, share: str, likeness: Tensor, lacking: str) -> float | None:
        """Return the base's end of a scale of likeness; None, with a note in `left_out`, if the scale is too short."""
        assert self.among is not None
        if not len(likeness):
            self.left_out.append(f"{share}: {lacking}")
            return None
        end = likeness.mean().item()
        if self.among - end < LEAST_SPAN:
            self.left_out.append(
                f"{share}: to this similarity model the base's images are as similar to the training images "
                f"({end:.3f}) as these to each other ({self.among:.3f})"
            )
            return None
        return end

    def _set_match(self, match: Tensor) -> None:
        own, others = own_and_others(match, self.base.prompts)
        if others is None:
            self.left_out.append("prompt lost: there is only one prompt")
        elif own - others < LEAST_SPAN:
            self.left_out.append(
                f"prompt lost: to this CLIP model the base's images match their prompts ({own:.3f}) no better than "
                f"others ({others:.3f})"
            )
        else:
            self.match_of_base, self.match_of_others = own, others

    def _likeness(self, measured: Measured) -> Tensor:
        assert measured.features is not None and self.training is not None
        return (measured.features @ self.training.T).mean(1)

    def score(self, cell: Cell, measured: Measured) -> Score:
        """Return the score of a cell's images."""
        score = Score(cell)
        nearest = nearest_images(measured.thumbnails, self.thumbnails)
        if cell != BASE:
            score.nearest = max(nearest, key=lambda one: one.correlation)
            score.copies = [one for one in nearest if one.correlation > self.copy_from]
        if self.training is not None:
            self._score_likeness(score, measured)
        if measured.prompt_match is not None:
            score.prompt_match, _ = own_and_others(measured.prompt_match, measured.prompts)
            if self.match_of_base is not None and self.match_of_others is not None:
                lost = (self.match_of_base - score.prompt_match) / (self.match_of_base - self.match_of_others)
                score.prompt_lost = min(max(lost, 0.0), 1.0)
        return score

    def _score_likeness(self, score: Score, measured: Measured) -> None:
        likeness, called = self._likeness(measured), torch.tensor(measured.calls_up, dtype=torch.bool)
        assert self.among is not None
        if called.any():
            score.likeness = likeness[called].mean().item()
            score.variety = variety(measured)
        if not called.all():
            score.likeness_without_trigger = likeness[~called].mean().item()
        if self.of_base is not None:
            copied = torch.zeros(len(called), dtype=torch.bool)
            copied[[one.image for one in score.copies]] = True
            credited = torch.where(copied, torch.full_like(likeness, self.of_base), likeness)[called].mean().item()
            # exceeding the likeness of training images among themselves is no merit
            score.learned = min((credited - self.of_base) / (self.among - self.of_base), 1.0)
        leaks = [
            max((likeness[group].mean().item() - end) / (self.among - end), 0.0)
            for group, end in zip(groups_without(measured), self.of_base_without, strict=False)
            if end is not None
        ]
        score.leak = sum(leaks) if leaks else None


def groups_without(measured: Measured) -> list[Tensor]:
    """Return masks (N,) of images without the trigger word: of prompts that had it, and of all others; none is empty.

    Apart, since a leak shows in the first, and many prompts for other subjects would hide it.
    """
    called = torch.tensor(measured.calls_up, dtype=torch.bool)
    had_it = {prompt for prompt, calls_up in zip(measured.prompts, measured.calls_up, strict=True) if calls_up}
    partner = torch.tensor([prompt in had_it for prompt in measured.prompts], dtype=torch.bool)
    return [group for group in (~called & partner, ~called & ~partner) if group.any()]


def mean_between(features: Tensor) -> float:
    """Return the mean cosine of all pairs of different rows; 1 for a single row."""
    count = len(features)
    if count == 1:
        return 1.0
    return (((features @ features.T).sum() - count) / (count * (count - 1))).item()


def own_and_others(match: Tensor, prompts: Sequence[int]) -> tuple[float, float | None]:
    """Return from (N, P) the mean cosine of images with their own prompt, and with the others; None without others."""
    own = torch.zeros_like(match, dtype=torch.bool)
    own[torch.arange(len(match)), list(prompts)] = True
    return match[own].mean().item(), match[~own].mean().item() if match.shape[1] > 1 else None


def variety(measured: Measured) -> float | None:
    """Return 1 - the mean cosine between the images of a prompt with the trigger word; None if each has one image."""
    assert measured.features is not None
    groups: dict[int, list[int]] = {}
    for image, (prompt, calls_up) in enumerate(zip(measured.prompts, measured.calls_up, strict=True)):
        if calls_up:
            groups.setdefault(prompt, []).append(image)
    alike = [mean_between(measured.features[images]) for images in groups.values() if len(images) > 1]
    return 1 - sum(alike) / len(alike) if alike else None


def nearest_images(thumbnails: Tensor, training: Tensor) -> list[Nearest]:
    """Return for each image (N, T) the training image (M, T) with the most similar thumbnail."""
    values, places = (thumbnails @ training.T).max(1)
    return [
        Nearest(image, place, value)
        for image, (place, value) in enumerate(zip(places.tolist(), values.tolist(), strict=True))
    ]


def usual_correlation(thumbnails: Tensor) -> float:
    """Return the correlation below which USUAL of the pairs of training images lie; -1 for a single image."""
    upper = torch.triu(torch.ones(len(thumbnails), len(thumbnails), dtype=torch.bool), diagonal=1)
    pairs = (thumbnails @ thumbnails.T)[upper]
    return torch.quantile(pairs.float(), USUAL).item() if len(pairs) else -1.0


@dataclass(frozen=True)
class Recommendation:
    """Recommended cell, None where none is better than the base or nothing is known, with the reason in a sentence."""

    cell: Cell | None
    reason: str


def finalists(scores: Mapping[Cell, Score]) -> tuple[Cell, ...]:
    """Return the FINALISTS cells with the highest scores, the best first; fewer if fewer are known."""
    totals = {cell: score.total for cell, score in scores.items() if cell != BASE and score.total is not None}
    return tuple(sorted(totals, key=lambda cell: -totals[cell])[:FINALISTS])


def recommend(scores: Mapping[Cell, Score]) -> Recommendation:
    """Return the mildest cell (lowest strength, then step) whose score is within TIE of the best."""
    totals = {cell: score.total for cell, score in scores.items() if cell != BASE}
    known = {cell: total for cell, total in totals.items() if total is not None}
    if not known:
        return Recommendation(None, "nothing is recommended: what was learned could not be measured")
    best = max(sorted(known), key=lambda cell: known[cell])
    if known[best] <= 0:
        return Recommendation(
            None,
            f"nothing is recommended: even the best, {best}, loses as much as it learns ({in_words(scores[best])})",
        )
    chosen = min(cell for cell, total in known.items() if total >= known[best] - TIE)
    reason = f"{chosen}: {in_words(scores[chosen])}"
    if chosen != best:
        reason += (
            f". {best} has {points(known[best])}; of all within {points(TIE)} of it, this is the mildest: "
            "the smallest strength, then the earliest checkpoint"
        )
    return Recommendation(chosen, reason)


def in_words(score: Score) -> str:
    """Return the score and its shares as text."""
    assert score.total is not None
    parts = {"learned": score.learned, "leak": score.leak, "prompt lost": score.prompt_lost}
    made_of = ", ".join(f"{name} {100 * value:.0f} %" for name, value in parts.items() if value is not None)
    return f"score {points(score.total)} ({made_of})"


def points(share: float) -> str:
    text = f"{100 * share:.1f}".removesuffix(".0")
    return f"{text} point" + ("" if text == "1" else "s")
