"""Prepare one source file: write its crops and return their facts. Runs in worker processes.

A crop's file name follows from the source's bytes and the recipe, so a file of that name is not made again. Imports no
torch.
"""

import dataclasses
import hashlib
import warnings
from pathlib import Path

from PIL import Image

from preprocess.images import mask_files as masks
from preprocess.images.crop import Crop, bucket_of, crop_image, random_positions
from preprocess.images.image_files import ENCODERS, sha256_of, slug, write_image, write_thumbnail
from preprocess.images.quality import measure, small_copy
from preprocess.images.recipe import Recipe
from preprocess.images.saliency import attention_position
from preprocess.jobs.state import Shelf
from sdxl_lora.config.sections.preprocess import ImageConfig
from sdxl_lora.folders.mask_files import own_mask
from sdxl_lora.images.colour import ImageWarning, is_read_anew
from sdxl_lora.images.decode import ImageError, decode_image, frame_count, image_header, read_image, upright_rgb


@dataclasses.dataclass(slots=True)
class Prepared:
    """One crop of one source, ready to be captioned. All values are JSON, so that a shelf can store it."""

    source: str
    sha256: str  # of the source file's bytes
    file_name: str  # images/...
    bytes: int  # of that file
    crop_index: int
    bucket: list[int]  # width, height
    original_size: list[int]  # height, width
    crop_top_left: list[int]  # y, x
    cut_off: float  # share of the area outside the crop
    enlarged: float  # factor of the resize if above 1, else 1
    measures: dict
    warnings: list[str]
    key: str  # of source and recipe; names the thumbnail too
    mask_file_name: str | None = None
    is_new: bool = True  # made by this run


@dataclasses.dataclass(frozen=True)
class Refused:
    """An image that cannot be used, and the reason."""

    source: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One image for a worker: plain values and paths."""

    path: Path
    name: str
    mask: Path | None
    recipe: Recipe
    output: Path  # the dataset's folder

    @property
    def staged(self) -> Path:
        return self.output / ".preprocess" / "images"


@dataclasses.dataclass(frozen=True)
class Bytes:
    """Contents of a job's files, read once so that hash, pixels and mask are of the same moment."""

    image: bytes
    mask: bytes | None

    @classmethod
    def of(cls, job: Job) -> "Bytes":
        """Read the files of a job.

        Raises:
            ImageError: one of them cannot be read.
        """
        image = read_image(job.path)
        if job.mask is None:
            return cls(image, None)
        try:
            return cls(image, read_image(job.mask))
        except ImageError as error:
            raise ImageError(job.path, f"its mask {job.mask.name}: {error.reason}") from None


def identity(job: Job, files: Bytes) -> str:
    """Return a key of the job's result: the bytes of image and mask, the recipe, and the file's name.

    Raises:
        ImageError: the image's header says that it cannot be used.
    """
    mask = f"{masks.VERSION} {sha256_of(files.mask)}" if files.mask is not None else ""
    anew = ["colours"] if is_read_anew(image_header(files.image, job.path, job.recipe.images.max_megapixels)) else []
    text = "\0".join([sha256_of(files.image), mask, job.recipe.digest(), Path(job.name).stem, *anew])
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def prepared_or_refused(job: Job) -> list[Prepared] | Refused:
    """Prepare an image, or return an earlier run's result if its bytes, recipe and crops are unchanged.

    Raises:
        OSError: the disk is full or not writable. An unusable image is returned as Refused instead.
    """
    try:
        files = Bytes.of(job)
        key = identity(job, files)
    except ImageError as error:
        return Refused(job.name, error.reason)
    shelf = Shelf(job.output / ".preprocess" / "pictures")
    known = shelf.get(key, crops_of_record)
    if known and all(crop_is_whole(job, crop) for crop in known):
        return [dataclasses.replace(crop, source=job.name, is_new=False) for crop in known]
    result = prepare_image(job, files, key)
    if isinstance(result, Refused):
        return result
    shelf.put(key, [dataclasses.asdict(crop) for crop in result])
    said = ["what an earlier run stored about it was damaged: prepared again"] if shelf.damaged else []
    return [dataclasses.replace(crop, warnings=crop.warnings + said) for crop in result]


def crops_of_record(record: list[dict]) -> list[Prepared]:
    """Return the crops in a record. Raises TypeError, ValueError or KeyError if it is no record of crops."""
    crops = [Prepared(**crop) for crop in record]
    if not crops:
        raise ValueError("no crops")
    for crop in crops:
        for name, kind in (("file_name", str), ("bytes", int), ("bucket", list), ("warnings", list), ("sha256", str)):
            if not isinstance(getattr(crop, name), kind):
                raise TypeError(f"{name} of a crop is {getattr(crop, name)!r}")
        crop.measures["phash"]
    return crops


def crop_is_whole(job: Job, crop: Prepared) -> bool:
    def size(name: str) -> int | None:
        for path in (job.output / name, job.staged / Path(name).name):
            if path.is_file():
                return path.stat().st_size
        return None

    return size(crop.file_name) == crop.bytes and (not crop.mask_file_name or size(crop.mask_file_name) is not None)


def prepare_image(job: Job, files: Bytes, key: str) -> list[Prepared] | Refused:
    """Decode, crop, measure and write one image; every file is written whole or not at all."""
    notes: list[str] = []
    try:
        image, mask = load(job, files, notes)
        bucket, sha256 = bucket_of(job.recipe.sizes, image.size), sha256_of(files.image)
        crops = crop_image(image, bucket, positions(job.recipe.images, image, bucket, sha256), mask)
        masks.check_masks_of_crops(crop.mask for crop in crops)
    except ValueError as error:
        return Refused(job.name, error.reason if isinstance(error, ImageError) else str(error))
    enlarged = max(bucket[0] / image.width, bucket[1] / image.height, 1.0)
    if enlarged > 1:
        notes.append(f"enlarged {enlarged:.2f} times, from {image.width}x{image.height} px")
    name = "-".join(part for part in (slug(job.name), key) if part)
    small = small_copy(image)
    common = {
        "source": job.name,
        "sha256": sha256,
        "key": key,
        "bucket": list(bucket),
        "enlarged": round(enlarged, 3),
        "measures": measure(small),
        "warnings": notes,
    }
    write_thumbnail(job.output / ".preprocess" / "thumbnails", small, key)
    return [
        write_crop(job, crop, f"{name}-{i}" if i else name, common | {"crop_index": i}) for i, crop in enumerate(crops)
    ]


def load(job: Job, files: Bytes, notes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """Return the image upright in RGB and its mask; oddities are added to `notes`."""
    images = job.recipe.images
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stored = decode_image(files.image, job.path, images.max_megapixels)
        if frame_count(stored) > 1:
            notes.append(f"{frame_count(stored)} frames; the first is used")
        image = upright_rgb(stored, images.background)
        mask = masks.mask_of(images.masks, job.mask, files.mask, stored, image, images.max_megapixels, notes)
    notes += dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, (ImageWarning, UserWarning)))
    return image, mask


def positions(
    config: ImageConfig, image: Image.Image, bucket: tuple[int, int], sha256: str
) -> list[tuple[float, float]]:
    if config.crop == "attention":
        return [attention_position(image, bucket)]
    if config.crop == "random":
        return random_positions(config.seed, sha256, config.crops_per_picture)
    return [(0.5, 0.5)]


def write_crop(job: Job, crop: Crop, name: str, facts: dict) -> Prepared:
    suffix, kind, options = ENCODERS[job.recipe.images.image_format]
    size = write_image(job.staged / (name + suffix), crop.image, kind, options)
    if crop.mask is not None:
        write_image(job.staged / f"{name}-mask.png", crop.mask, "PNG", {"compress_level": 6})
    return Prepared(
        file_name=f"images/{name}{suffix}",
        bytes=size,
        original_size=list(crop.original_size),
        crop_top_left=list(crop.crop_top_left),
        cut_off=round(crop.cut_off, 4),
        mask_file_name=None if crop.mask is None else own_mask(f"images/{name}.png"),
        **facts,
    )
