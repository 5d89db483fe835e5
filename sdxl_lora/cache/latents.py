"""VAE moments of the training images on disk."""

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
BATCHES_AHEAD = 2  # decoded while the device works on others
WORKER_TIMEOUT_SECONDS = 120  # decoding the largest picture that is accepted takes seconds
START_TIMEOUT_SECONDS = 600  # imports from a slow network folder take minutes


def wait_for_start(pool) -> None:
    """Until a process of the pool is there, which imports torch first: its pictures' time begins then."""
    try:
        pool.apply_async(int).get(START_TIMEOUT_SECONDS)
    except multiprocessing.TimeoutError:
        raise DataError(
            f"the processes that decode pictures have not started within {START_TIMEOUT_SECONDS} s: "
            "use --dataloader_num_workers 0"
        ) from None


_images: Images  # in a worker process

Item: TypeAlias = tuple[int, bool]  # a picture's index, and whether it is mirrored
Tensors: TypeAlias = dict[str, torch.Tensor]
Picture: TypeAlias = Tensors | Exception  # as ImageDataset.load gives it, or what is wrong with it


class LatentCache:
    """VAE moments of pictures: `mean` and `std` (C, h, w) float32, as the UNet sees them, and the sizes.

    With masks also `mask` (1, h, w): the share of each latent's square of pixels that counts.
    With `load_vae`, a record that turns out to be damaged when it is read is made again, on the CPU, in float32.
    With `live`, nothing is kept: it encodes each picture when it is read.

    batch_size: pictures of one size that are encoded at once to fill it.
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
        self.batch_size = self.at_once = batch_size  # the second is lower where memory did not suffice

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
            warnings.warn(f"{self.path(index, flip)} is damaged and is made again", stacklevel=2)
            write_record(self.path(index, flip), self._encoded(VaeEncoder(self.load_vae()), index, flip))
            return read_record(self.path(index, flip))

    def _encoded(self, encode: VaeEncoder, index: int, flip: bool) -> dict[str, torch.Tensor]:
        return encoded(encode, self.images.load(index, flip), self._name((index, flip)))

    def _name(self, item: Item) -> str:
        return self.images.examples[item[0]].name

    def missing(self, flips: Iterable[bool], workers: Workers) -> list[list[Item]]:
        """This process's share of the records that are not there, or not whole, in batches of one size.

        The batches are those of all records, there or not, and are dealt out whole: who is encoded beside whom does not
        depend on the number of processes.
        """
        every = {self.path(index, flip): (index, flip) for index in range(len(self.images)) for flip in flips}
        batches = in_batches(every, lambda path: self.images.examples[every[path][0]].target_size, self.batch_size)
        left = ([every[path] for path in batch if not is_whole(path)] for batch in workers.share(batches))
        return [batch for batch in left if batch]

    def fill(self, encode: VaeEncoder, flips: Iterable[bool], num_workers: int, workers: Workers) -> int:
        """Encode what is missing, each process its share. Returns how many records this process was to write.

        Raises:
            DataError: a picture cannot be decoded.
            NonFiniteError: the VAE gave NaN or infinity for a picture, which is named.
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
        """Write the records of pictures of one size. What is wrong with one is raised when the others are there.

        Returns whether all are there: false where it was stopped between two parts.
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
            if wrong:  # a picture's own fault is not hidden by what befell the others
                raise first_of(wrong, pictures) from error
            raise
        if wrong:
            raise first_of(wrong, pictures)
        return left == 0

    def _parts(
        self, encode: VaeEncoder, pictures: dict[Item, Tensors], should_stop: Callable[[], object]
    ) -> Iterator[dict[Item, Tensors]]:
        """The pictures' moments, in order, in parts of what was encoded at once; until it is to stop.

        From where memory does not suffice, a part is half as large. Before the first part the caller asks.
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
            if not moments:  # not above, where the error's traceback still holds the batch's tensors
                self.at_once = len(part) // 2
                warnings.warn(
                    f"out of memory with {len(part)} pictures in the VAE at once: going on with {self.at_once}",
                    stacklevel=2,
                )
                free_memory()
                continue
            done += len(part)
            yield dict(zip(part, moments, strict=True))

    def _decoded(self, items: list[Item], num_workers: int) -> Generator[Picture, None, None]:
        """The pictures, in order, made by a thread or by worker processes; a few at a time wait to be taken.

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
        # On leaving, whatever still runs is ended.
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
                            f"the process that decodes {self._name(asked)} died or hangs: no answer "
                            f"for {WORKER_TIMEOUT_SECONDS} s. Look at the picture, or use --dataloader_num_workers 0."
                        ) from None
                    if isinstance(picture, str):
                        yield DataError(picture)
                    else:
                        yield {name: torch.from_numpy(array) for name, array in picture.items()}


def taken(decoded: Iterator[Picture], batch: list[Item]) -> dict[Item, Picture]:
    """A batch's pictures; where taking one fails, its error in its place, and none that follow."""
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
    """Things of one size together, at most so many of them, in the order of each batch's first."""
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
    """Start of a worker process: what it decodes from."""
    global _images
    _images = images


def _decode(index: int, flip: bool) -> dict | str:
    """Return, in a worker process, the picture, or what is wrong with it (some exceptions do not survive the way back).

    As arrays: torch would hand over open files, which are gone with a worker that dies.
    """
    try:
        return {name: tensor.numpy() for name, tensor in _images.load(index, flip).items()}
    except DataError as error:
        return str(error)
