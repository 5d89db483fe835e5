"""Settings of the training data and its caches."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from sdxl_lora.config.checks import multiple_of_8_problem, part_problems
from sdxl_lora.config.dataset_spec import DatasetEntry, parse_entries
from sdxl_lora.config.fields import BY_CONTENT, FREE, PATH, SAME, SET, applies_when
from sdxl_lora.errors import ConfigError


@dataclass(frozen=True)
class DataConfig:
    """Training images."""

    train_data_dir: Annotated[str | None, PATH, BY_CONTENT] = None
    """Folder of images: the output of `python -m preprocess`, or images with .txt captions next to them."""
    dataset_name: Annotated[str | None, PATH, BY_CONTENT] = None
    """Instead of train_data_dir: a dataset on the Hub, or a folder written by save_to_disk of the datasets library."""
    dataset_config_name: Annotated[str | None, BY_CONTENT, applies_when(dataset_name=SET)] = None
    """Configuration of the dataset on the Hub."""
    datasets: Annotated[tuple[str, ...], BY_CONTENT] = ()
    """Instead of both: several datasets. Each is a folder such as data/cat, with repeats per epoch data/cat:3, or
    "{train_data_dir: data/cat, repeats: 3}". Further keys: dataset_name, dataset_config_name, trigger_word (put in
    front of captions), is_class_images, and instead of repeats, weight: the share of the samples."""
    image_column: Annotated[str, BY_CONTENT] = "image"
    """Dataset column with the images."""
    caption_column: Annotated[str, BY_CONTENT] = "text"
    """Dataset column with the captions."""
    max_train_samples: Annotated[int | None, Gt(0), BY_CONTENT] = None
    """Use only the first N images of each dataset."""
    dataset_streaming: Annotated[bool, SAME] = False
    """Read any number of images as they come, from .tar (WebDataset) or .parquet files in train_data_dir or from the
    Hub, and encode them each time. Needs max_train_steps."""
    shuffle_buffer_size: Annotated[int, Gt(0), FREE, applies_when(dataset_streaming=SET)] = 256
    """How many images of a stream are shuffled at a time in each process; 1 keeps the stored order. Up to twice as many
    wait in memory, encoded as in their files."""
    resolution: Annotated[int, Gt(0), BY_CONTENT] = 1024
    """Images that preprocess has not sized are cropped to a square with sides of this many pixels; a multiple of 8."""
    center_crop: Annotated[bool, BY_CONTENT] = True
    """Crop such images at their centre. If off, at a place drawn once per image from the seed."""
    random_flip: Annotated[bool, SAME] = False
    """Mirror an image left to right half of the times it is used."""

    def entries(self) -> list[DatasetEntry]:
        """Return the datasets, as a list of one if `datasets` is empty."""
        one = DatasetEntry(self.train_data_dir, self.dataset_name, self.dataset_config_name)
        return parse_entries(self.datasets) or [one]

    def problems(self) -> list[str]:
        """Return a sentence for each invalid setting."""
        problems = []
        if self.resolution > 0 and self.resolution % 8:
            problems.append(multiple_of_8_problem(self.resolution))
        if [self.train_data_dir is None, self.dataset_name is None, not self.datasets].count(False) != 1:
            problems.append(
                "give one of train_data_dir (a folder), dataset_name (the Hub, or save_to_disk) or datasets (several)"
            )
        try:
            parse_entries(self.datasets)
        except ConfigError as error:
            problems.append(f"datasets: {error}")
        return problems


@dataclass(frozen=True)
class CacheConfig:
    """Caches of latents and text embeddings."""

    cache_latents: Annotated[bool, FREE] = True
    """Encode each image once and keep its latents on disk. If off, the VAE stays in GPU memory and encodes images each
    time."""
    cache_text_embeddings: Annotated[bool, FREE] = True
    """Encode each caption once and keep its embeddings. If off, or if captions vary too much, the text encoders stay in
    memory. If they are trained, captions are encoded each time in any case."""
    max_cached_captions: Annotated[int, Ge(0), FREE, applies_when(cache_text_embeddings=SET)] = 4000
    """If captions vary, cache the embeddings of all that will occur, up to this number (about 0.3 MB each per chunk).
    If there are more, keep the text encoders (1.5 GiB of GPU memory) and encode each time."""
    dataloader_num_workers: Annotated[int, Ge(0), FREE] = 0
    """Processes that decode images while the caches are filled. 0: a thread decodes while the VAE encodes others."""
    vae_batch_size: Annotated[int, Gt(0), FREE, applies_when(cache_latents=SET)] = 1
    """Images of one size that the VAE encodes at once while the caches are filled; fewer if memory runs out. Above 1,
    the last bits of an image's latents may depend on the images encoded with it."""
    vae_precision: Annotated[Literal["fp32", "bf16", "fp16"], BY_CONTENT] = "fp32"
    """Precision in which the VAE encodes images. bf16 and fp16 may be faster on GPUs but round the latents, bf16 more;
    an image that overflows is encoded in fp32. SDXL's own VAE overflows in fp16; others are made for it."""
    cache_dir: Annotated[str | None, PATH, FREE] = None
    """Folder of cached latents and text embeddings, shared between runs. Default: <output_dir>/cache."""
    cache_part: Annotated[str | None, FREE, applies_when(cache_latents=SET)] = None
    """Fill only this part of the caches, e.g. 3/16, and end. Any number of such jobs can run at once; a training that
    follows finds all of it there."""

    def problems(self) -> list[str]:
        """Return a sentence for each invalid or conflicting setting."""
        problems = part_problems("cache_part", self.cache_part)
        if self.cache_part is not None and not self.cache_latents:
            problems.append("cache_part fills the caches: leave out no_cache_latents")
        return problems
