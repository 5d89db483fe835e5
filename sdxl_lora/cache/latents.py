"""Cache of the training images' VAE moments on disk."""

import multiprocessing
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from tqdm import tqdm

from sdxl_lora.cache.records import Workers, is_whole, read_record, record_path, write_record
from sdxl_lora.data.image_dataset import Images
from sdxl_lora.data.prefetch import prefetch
from sdxl_lora.errors import DataError, NonFiniteError
from sdxl_lora.fault_injection import fault_point
from sdxl_lora.models.vae import VaeEncoder, encoded, record_of
from sdxl_lora.operating_system import PROCESSES
from sdxl_lora.performance.device_memory import free_memory, is_out_of_memory

Thing = TypeVar("Thing")
BATCHES_AHEAD = 2  # decoded while the device encodes others
WORKER_TIMEOUT_SECONDS = 120  # decoding the largest accepted image takes seconds
START_TIMEOUT_SECONDS = 600  # imports from a slow network folder take minutes


def wait_for_start(pool) -> None:
    """Wait until a process of the pool has imported torch; only then do the timeouts of its images begin."""
    try:
        pool.apply_async(int).get(START_TIMEOUT_SECONDS)
    except multiprocessing.TimeoutError:
        raise DataError(
            f"the processes that decode images have not started within {START_TIMEOUT_SECONDS} s: "
            "use --dataloader_num_workers 0"
        ) from None


_images: Images  # in a worker process

Item: TypeAlias = tuple[int, bool]  # an image's index, and whether it is mirrored
Tensors: TypeAlias = dict[str, torch.Tensor]
Picture: TypeAlias = Tensors | Exception  # from ImageDataset.load, or its error


class LatentCache:
    """VAE moments of images: `mean` and `std` (C, h, w) float32, in the UNet's scale, and the sizes.

    With masks also `mask` (1, h, w): the share of each latent's pixels that counts.
    With `load_vae`, a record found damaged on reading is made again, on the CPU, in float32.
    With `live`, nothing is stored: it encodes each image on reading.

    batch_size: images of one size to encode at once while filling.
    """

    def __init__(
        self,
        folder: Path,
        images: Images,
        vae_key: str,
        load_vae: Callable | None = None,
        live: VaeEncoder | None = None,
        batch_size: int = 1,
    ):
        self.folder, self.images, self.vae_key = folder / "latents", images, vae_key
        self.load_vae, self.live = load_vae, live
        self.batch_size = self.at_once = batch_size  # at_once falls when memory runs out

    def path(self, index: int, flip: bool) -> Path:
        return record_path(self.folder, self.images.examples[index].key, self.vae_key, flip)

    def read(self, index: int, flip: bool = False) -> dict[str, torch.Tensor]:
        if self.live is not None:
            return self._encoded(self.live, index, flip)
        try:
            return read_record(self.path(index, flip))
        except DataError:
            if self.load_vae is None:
                raise
            warnings.warn(f"{self.path(index, flip)} is damaged and will be made again", stacklevel=2)
            write_record(self.path(index, flip), self._encoded(VaeEncoder(self.load_vae()), index, flip))
            return read_record(self.path(index, flip))

    def _encoded(self, encode: VaeEncoder, index: int, flip: bool) -> dict[str, torch.Tensor]:
        return encoded(encode, self.images.load(index, flip), self._name((index, flip)))

    def _name(self, item: Item) -> str:
        return self.images.examples[item[0]].name

    def missing(self, flips: Iterable[bool], workers: Workers) -> list[list[Item]]:
        """Return this process's share of the missing or incomplete records, in batches of one size.

        Batches are formed from all records, present or not, and are shared out whole, so that the images encoded
        together do not depend on the number of processes.
        """
        every = {self.path(index, flip): (index, flip) for index in range(len(self.images)) for flip in flips}
        batches = in_batches(every, lambda path: self.images.examples[every[path][0]].target_size, self.batch_size)
        left = ([every[path] for path in batch if not is_whole(path)] for batch in workers.share(batches))
        return [batch for batch in left if batch]

    def fill(self, encode: VaeEncoder, flips: Iterable[bool], num_workers: int, workers: Workers) -> int:
        """Encode this process's share of the missing records; return their number.

        Raises:
            DataError: an image cannot be decoded.
            NonFiniteError: the VAE gave NaN or infinity for an image, which is named.
        """
        batches = self.missing(flips, workers)
        items = [item for batch in batches for item in batch]
        bar = tqdm(desc="caching latents", unit=" images", total=len(items), disable=workers.rank > 0 or not items)
        with closing(self._decoded(items, num_workers)) as decoded, bar:
            for batch in batches:
                pictures = taken(decoded, batch)
                if workers.should_stop() or not self._fill_batch(encode, pictures, workers.should_stop, bar):
                    break
        return len(items)

    def _fill_batch(
        self, encode: VaeEncoder, pictures: dict[Item, Picture], should_stop: Callable[[], object], bar: tqdm
    ) -> bool:
        """Write the records of images of one size; raise an image's error only once the others are written.

        Returns False if it was stopped between two parts, else True.
        """
        wrong = {item: picture for item, picture in pictures.items() if isinstance(picture, Exception)}
        whole = {item: picture for item, picture in pictures.items() if not isinstance(picture, Exception)}
        left = len(whole)
        try:
            for part in self._parts(encode, whole, should_stop):
                for item, moments in part.items():
                    try:
                        write_record(self.path(*item), record_of(whole[item], moments, self._name(item)))
                        fault_point("caching")
                    except NonFiniteError as error:
                        wrong[item] = error
                left -= len(part)
                bar.update(len(part))
        except Exception as error:
            if wrong:  # an image's own error comes before one that affects the others
                raise first_of(wrong, pictures) from error
            raise
        if wrong:
            raise first_of(wrong, pictures)
        return left == 0

    def _parts(
        self, encode: VaeEncoder, pictures: dict[Item, Tensors], should_stop: Callable[[], object]
    ) -> Iterator[dict[Item, Tensors]]:
        """Yield the images' moments in order, in the parts encoded at once, until it should stop.

        When memory runs out, parts are halved. The caller checks for a stop before the first part.
        """
        items, done = list(pictures), 0
        while done < len(items) and not (done and should_stop()):
            part = items[done:][: self.at_once]
            pixels = torch.stack([pictures[item]["pixels"] for item in part])
            try:
                moments = encode(pixels, [self._name(item) for item in part])
            except RuntimeError as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
                moments = []
            if not moments:  # not in the handler, where the traceback still holds the batch's tensors
                self.at_once = len(part) // 2
                warnings.warn(
                    f"out of memory with {len(part)} images in the VAE at once: going on with {self.at_once}",
                    stacklevel=2,
                )
                free_memory()
                continue
            done += len(part)
            yield dict(zip(part, moments, strict=True))

    def _decoded(self, items: list[Item], num_workers: int) -> Generator[Picture, None, None]:
        """Yield the images in order, decoded ahead by a thread or by worker processes.

        Raises:
            DataError: a worker died or was silent for WORKER_TIMEOUT_SECONDS.
        """
        if num_workers and items:
            yield from self._decoded_by_workers(items, num_workers)
        else:
            yield from prefetch((self._load(*item) for item in items), BATCHES_AHEAD * self.batch_size)

    def _load(self, index: int, flip: bool) -> Picture:
        try:
            return self.images.load(index, flip)
        except DataError as error:
            return error

    def _decoded_by_workers(self, items: list[Item], num_workers: int) -> Iterator[Picture]:
        waiting: deque = deque()
        # Leaving the context ends all workers.
        with PROCESSES.Pool(min(num_workers, len(items)), _decode_for, (self.images,)) as pool:
            wait_for_start(pool)
            for item in [*items, *[None] * 2 * num_workers]:
                if item is not None:
                    waiting.append((item, pool.apply_async(_decode, item)))
                if waiting and (item is None or len(waiting) > 2 * num_workers):
                    asked, result = waiting.popleft()
                    try:
                        picture = result.get(WORKER_TIMEOUT_SECONDS)
                    except multiprocessing.TimeoutError:
                        raise DataError(
                            f"the process that decodes {self._name(asked)} died or is hanging: no answer "
                            f"for {WORKER_TIMEOUT_SECONDS} s. Check the image, or use --dataloader_num_workers 0."
                        ) from None
                    if isinstance(picture, str):
                        yield DataError(picture)
                    else:
                        yield {name: torch.from_numpy(array) for name, array in picture.items()}


def taken(decoded: Iterator[Picture], batch: list[Item]) -> dict[Item, Picture]:
    """Return a batch's images; if taking one fails, its error in its place and none after it."""
    pictures: dict[Item, Picture] = {}
    for item in batch:
        try:
            pictures[item] = next(decoded)
        except Exception as error:
            pictures[item] = error
            break
    return pictures


def first_of(wrong: dict[Item, Exception], items: Iterable[Item]) -> Exception:
    return next(wrong[item] for item in items if item in wrong)


def in_batches(things: Iterable[Thing], size_of: Callable[[Thing], object], most: int) -> list[list[Thing]]:
    """Group things of one size into batches of at most `most`, in the order of each batch's first thing."""
    batches: list[list[Thing]] = []
    of_size: dict[object, list[Thing]] = {}
    for thing in things:
        batch = of_size.setdefault(size_of(thing), [])
        if not batch:
            batches.append(batch)
        batch.append(thing)
        if len(batch) == most:
            del of_size[size_of(thing)]
    return batches


def _decode_for(images: Images) -> None:
    """Initialize a worker process with the images that it decodes."""
    global _images
    _images = images


def _decode(index: int, flip: bool) -> dict | str:
    """Return the image in a worker process, or its error as text, since some exceptions cannot be sent back.

    Sends arrays: torch would send open files, which are lost if the worker dies.
    """
    try:
        return {name: tensor.numpy() for name, tensor in _images.load(index, flip).items()}
    except DataError as error:
        return str(error)
