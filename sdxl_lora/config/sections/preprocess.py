"""Settings for turning a folder of images into a dataset: sizes, crops, captions, files."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from sdxl_lora.config.checks import multiple_of_8_problem, part_problems
from sdxl_lora.config.fields import PATH, SET, applies_when

FOR_UPLOAD = applies_when(push_to_hub=SET)


@dataclass(frozen=True)
class SizeConfig:
    """Sizes."""

    resolution: Annotated[int, Gt(0)] = 1024
    """Side in pixels of the square whose area every prepared image fills; a multiple of 8."""
    buckets: Literal["on", "off"] = "on"
    """on: each image gets the size with the nearest aspect ratio; off: all become squares."""
    bucket_step: Annotated[int, Gt(0)] = 64
    """The sides of buckets are multiples of this many pixels; itself a multiple of 8."""
    max_aspect: float = 2.0
    """Largest ratio of a bucket's longer side to its shorter side."""
    no_upscale: bool = False
    """Put images that are too small for their bucket into a smaller one instead of leaving them out."""
    enlarge_small: bool = False
    """Enlarge images that are too small for their bucket instead of leaving them out."""
    min_bucket_side: Annotated[int | None, Gt(0), applies_when(no_upscale=SET)] = None
    """With no_upscale: shortest side of a bucket, in pixels. Default: half the resolution."""

    @property
    def min_side(self) -> int:
        """Shortest side of a bucket, in pixels."""
        return self.min_bucket_side or self.resolution // 2

    def problems(self) -> list[str]:
        """Return a sentence for each invalid or conflicting setting."""
        problems = []
        if self.resolution > 0 and self.resolution % 8:
            problems.append(multiple_of_8_problem(self.resolution))
        if self.bucket_step > 0 and self.bucket_step % 8:
            problems.append(f"bucket_step is {self.bucket_step}, it must be a multiple of 8")
        if self.buckets == "on" and 0 < self.resolution < self.bucket_step:
            problems.append(f"resolution {self.resolution} is below bucket_step {self.bucket_step}: lower bucket_step")
        if not 1 <= self.max_aspect <= 8:
            problems.append(f"max_aspect is {self.max_aspect}, it must be from 1 to 8")
        if self.no_upscale and self.enlarge_small:
            problems.append("no_upscale and enlarge_small cannot be used together: choose one")
        if self.no_upscale and self.buckets == "off":
            problems.append("no_upscale needs buckets: without them small images are left out or enlarged")
        return problems


@dataclass(frozen=True)
class ImageConfig:
    """Crops, formats and masks."""

    crop: Literal["center", "attention", "random"] = "center"
    """Where to crop an image that does not fit its bucket: at the centre, around what draws the eye, or at random."""
    crops_per_picture: Annotated[int, Gt(0), applies_when(crop=("random",))] = 1
    """With --crop random: number of crops per image, each an example of its own."""
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    """Fixes the positions of random crops."""
    background: tuple[int, int, int] = (255, 255, 255)
    """Colour behind transparent images: red, green and blue, 0-255 each."""
    max_megapixels: Annotated[float, Gt(0)] = 128
    """Larger images are left out: they need 3 MB of memory per megapixel, several times over."""
    image_format: Literal["png", "webp", "jpg"] = "png"
    """png and webp are lossless; webp is a third smaller, but slower. jpg (quality 95, 4:4:4) is a sixth of the
    size."""
    masks: Literal["none", "alpha", "folder", "remover"] = "none"
    """Where masks come from: transparency (alpha), masks/<name>.png next to the images (folder), or the background
    remover rembg, if it is installed. The loss counts where a mask is white."""
    class_images: Annotated[str | None, PATH] = None
    """Folder of class images for prior preservation; they get no trigger word, and a column is_class_image."""

    def problems(self) -> list[str]:
        """Return a sentence for each invalid or conflicting setting."""
        problems = []
        if not all(0 <= value <= 255 for value in self.background):
            problems.append(f"background is {self.background}, it must be three numbers from 0 to 255")
        if self.crops_per_picture > 1 and self.crop != "random":
            problems.append(f"crops_per_picture {self.crops_per_picture} needs --crop random")
        return problems


@dataclass(frozen=True)
class CaptionerConfig:
    """Captioner."""

    caption_model: Annotated[tuple[str, ...], PATH] = ("florence-community/Florence-2-base",)
    """Captioner for images without a caption file: Florence-2, a fine-tune in its native format, any image-text-to-text
    model of transformers, or a WD tagger (model.onnx with selected_tags.csv); a Hub id or a folder; "none" for no
    captioner. Several of them write one caption together; see caption_join."""
    caption_join: Literal["one", "several"] = "one"
    """What becomes of the captions of several captioners: one caption, in their order, separated by commas; or several
    captions, of which each sample takes one."""
    caption_task: str = "<DETAILED_CAPTION>"
    """Task for Florence-2: <CAPTION>, <DETAILED_CAPTION>, <MORE_DETAILED_CAPTION>, or a fine-tune's task."""
    caption_prompt: str | None = None
    """What other models are asked, or how their caption should begin."""
    caption_batch_size: Annotated[int | None, Gt(0)] = None
    """Maximum number of images captioned at once; halved if the GPU is too small. Default: doubled from 1 as its memory
    allows, up to 64, or up to 8 without a GPU."""
    caption_num_beams: Annotated[int, Gt(0)] = 3
    """Number of beams in the search for a caption; 1 is fastest."""
    caption_max_new_tokens: Annotated[int, Gt(0)] = 256
    """Maximum length of a caption, in the captioner's tokens."""
    caption_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of the captioner. auto: bfloat16 on a GPU that supports it, float16 on an older one, float32
    elsewhere."""
    caption_attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention implementation of the captioner."""
    ocr: bool = False
    """Let Florence-2 look for text in the images (watermarks, signatures) and warn about it."""

    def __post_init__(self) -> None:
        if isinstance(self.caption_model, str):  # reports of earlier versions hold a single name
            object.__setattr__(self, "caption_model", (self.caption_model,))

    @property
    def models(self) -> tuple[str, ...]:
        """The captioners; empty for "none"."""
        return () if self.caption_model == ("none",) else self.caption_model

    @property
    def model(self) -> str:
        """The captioner of a config that names exactly one."""
        (model,) = self.caption_model
        return model

    def of_each(self) -> list["CaptionerConfig"]:
        """Return the same settings for each captioner alone."""
        return [replace(self, caption_model=(model,), caption_join="one") for model in self.models]

    def problems(self) -> list[str]:
        """Return a sentence for each invalid or conflicting setting."""
        problems = []
        if not self.caption_model:
            problems.append("caption_model is empty, it must be some text")
        if len(set(self.caption_model)) < len(self.caption_model) or (self.models and "none" in self.caption_model):
            problems.append("caption_model names a captioner twice, or none together with one: name each once")
        if self.ocr and not self.models:
            problems.append("ocr needs a caption_model, Florence-2 or a fine-tune of it")
        if self.caption_join != "one" and len(self.models) < 2:
            problems.append("caption_join several needs a caption_model with two captioners or more")
        return problems


@dataclass(frozen=True)
class TaggerConfig:
    """Tagger."""

    tag_threshold: Annotated[float, Gt(0), Lt(1)] = 0.35
    """Minimum probability of a tag that says what is in an image."""
    tag_character_threshold: Annotated[float, Gt(0), Lt(1)] = 0.85
    """Minimum probability of a tag that says who is in an image."""
    tag_blacklist: tuple[str, ...] = ()
    """Tags that are never written, such as those for what always belongs to the subject."""
    tag_spaces: bool = True
    """Write spaces instead of underscores, long hair for long_hair; emoticons such as ^_^ stay."""
    tag_escape_parentheses: bool = False
    """Put a backslash before parentheses in tags. Clients need that in prompts to read plain parentheses; the trainer
    reads captions as they are."""
    tag_ratings: bool = False
    """Add the likeliest rating (general, sensitive, questionable, explicit) as the last tag."""


@dataclass(frozen=True)
class WordingConfig:
    """Caption text."""

    fallback_caption: str = ""
    """Caption of images without a caption file if caption_model is "none"."""
    caption_prefix: str = ""
    """Words at the start of every caption, after the trigger word."""
    caption_suffix: str = ""
    """Words at the end of every caption."""
    clean_captions: bool = True
    """Remove the captioner's stock phrases ("The image shows ..."); the report shows each change."""
    tokenizer: Annotated[str | None, PATH] = None
    """CLIP tokenizer that counts the tokens of captions: folder or Hub id of an SDXL base. Default: that of SDXL 1.0 if
    it is on this machine; otherwise words and punctuation are counted, a lower bound."""
    captions_per_line: bool = False
    """Treat each line of a caption file as a separate caption; each use of the image in training takes one of them."""
    recaption: bool = False
    """Redo all captions, even edited ones: from caption files if there are any, otherwise by the captioner. The old
    rows are kept in .preprocess/before_recaption.jsonl."""


@dataclass(frozen=True)
class DatasetConfig:
    """Dataset files."""

    format: Literal["folder", "parquet"] = "folder"
    """parquet: also write parquet/, shards that contain the images, for the Hub and for clusters."""
    max_shard_mb: Annotated[int, Gt(0), applies_when(format=("parquet",))] = 500
    """Maximum size of a parquet shard in MB, unless one image alone is larger."""
    push_to_hub: bool = False
    """Upload the dataset to the Hub, with its card: the shards with --format parquet, otherwise the folder."""
    hub_dataset_id: Annotated[str | None, FOR_UPLOAD] = None
    """Repository to upload to, user/name. Default: the output folder's name, under the account that is logged in."""
    hub_private: Annotated[bool, FOR_UPLOAD] = True
    """Create the repository as private."""


@dataclass(frozen=True)
class JobConfig:
    """Job options."""

    part: str | None = None
    """Prepare and caption only this part of the images, e.g. 3/16, and publish nothing. Any number of such jobs can run
    at once; the same command without it then puts the dataset together."""
    dry_run: bool = False
    """Show what would be done, from the headers of the files alone, and write nothing."""
    num_workers: Annotated[int | None, Ge(0)] = None
    """Processes that decode and crop; 0 for the command's own process alone. Default: the number of CPU cores, at most
    8."""
    strict: bool = False
    """If an image would be left out, stop with exit code 3 and publish nothing."""
    leave_out: tuple[str, ...] = ()
    """Images to leave out, by their names in the plan, such as holiday/IMG_1.jpg. Their files stay where they are."""
    restore_deleted: bool = False
    """Bring back images whose lines were deleted from metadata.jsonl by hand."""
    train_batch_size: Annotated[int, Gt(0)] = 1
    """Batch size planned for training: buckets with fewer images are pointed out."""

    def problems(self) -> list[str]:
        """Return a sentence if `part` is invalid."""
        return part_problems("part", self.part)
