"""Settings of `python -m preprocess`, in sections; see train.py."""

from dataclasses import dataclass
from typing import Annotated

from sdxl_lora.config.checks import raise_all
from sdxl_lora.config.fields import PATH, range_problems, tidy_paths
from sdxl_lora.config.sections.preprocess import (
    CaptionerConfig,
    DatasetConfig,
    ImageConfig,
    JobConfig,
    SizeConfig,
    TaggerConfig,
    WordingConfig,
)


@dataclass(frozen=True)
class PreprocessConfig:
    """Turn a folder of images into an image/caption dataset for training."""

    input_dir: Annotated[str, PATH]
    """Folder of PNG, JPEG, WebP and GIF images; subfolders are read too. Nothing is written to it."""
    output_dir: Annotated[str, PATH]
    """Folder for the dataset: images/, metadata.jsonl, README.md and preprocess_report.json."""
    trigger_word: str = ""
    """Word at the start of every caption that will call up the concept, e.g. "sks". It is never added twice."""
    sizes: SizeConfig = SizeConfig()
    images: ImageConfig = ImageConfig()
    captioner: CaptionerConfig = CaptionerConfig()
    tagger: TaggerConfig = TaggerConfig()
    captions: WordingConfig = WordingConfig()
    output: DatasetConfig = DatasetConfig()
    job: JobConfig = JobConfig()

    def __post_init__(self) -> None:
        tidy_paths(self)
        object.__setattr__(self, "trigger_word", self.trigger_word.strip())
        sections = (self.sizes, self.images, self.captioner, self.job)
        problems = [*range_problems(self), *(problem for section in sections for problem in section.problems())]
        if "\0" in self.output_dir or not self.output_dir.strip():
            problems.append(f"output_dir {self.output_dir!r} is an invalid name")
        raise_all(problems)
