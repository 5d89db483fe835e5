"""VAE moments of the training images on disk."""

import multiprocessing
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from sdxl_lora.cache.records import Workers, is_whole, read_record, record_path, write_record
from sdxl_lora.data.image_dataset import Images
from sdxl_lora.errors import DataError
from sdxl_lora.fault_injection import fault_point
from sdxl_lora.models.vae import encoded
from sdxl_lora.operating_system import PROCESSES

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


class LatentCache:
    """VAE moments of pictures: `mean` and `std` (C, h, w) float32, as the UNet sees them, and the sizes.

    With masks also `mask` (1, h, w): the share of each latent's square of pixels that counts.
    With `load_vae`, a record that turns out to be damaged when it is read is made again, on the CPU.
    With `live_vae`, nothing is kept: it encodes each picture when it is read.
    """

    def __init__(self, folder: Path, images: Images, vae_key: str, load_vae: Callable | None = None, live_vae=None):
        self.folder, self.images, self.vae_key = folder / "latents", images, vae_key
        self.load_vae, self.live_vae = load_vae, live_vae

    def path(self, index: int, flip: bool) -> Path:
        return record_path(self.folder, self.images.examples[index].key, self.vae_key, flip)

    def read(self, index: int, flip: bool = False) -> dict[str, torch.Tensor]:
        if self.live_vae is not None:
            return self._encode(self.live_vae, index, self.images.load(index, flip))
        try:
            return read_record(self.path(index, flip))
        except DataError:
            if self.load_vae is None:
                raise
            warnings.warn(f"{self.path(index, flip)} is damaged and is made again", stacklevel=2)
            write_record(self.path(index, flip), self._encode(self.load_vae(), index, self.images.load(index, flip)))
            return read_record(self.path(index, flip))

    def missing(self, flips: Iterable[bool], workers: Workers) -> list[tuple[int, bool]]:
        """This process's share of the records that are not there, or not whole."""
        wanted = [(index, flip) for index in range(len(self.images)) for flip in flips]
        return [item for item in workers.share(wanted) if not is_whole(self.path(*item))]

    def fill(self, vae, flips: Iterable[bool], num_workers: int, workers: Workers) -> int:
        """Encode what is missing, each process its share. Returns how many records this process wrote.

        Raises:
            DataError: a picture cannot be decoded.
            NonFiniteError: the VAE gave NaN or infinity for a picture, which is named.
        """
        missing = self.missing(flips, workers)
        records = self._decoded(missing, num_workers)
        for (index, flip), record in tqdm(
            zip(missing, records, strict=True),
            desc="caching latents", total=len(missing), disable=workers.rank > 0 or not missing,
        ):  # fmt: skip
            if workers.should_stop():
                break
            write_record(self.path(index, flip), self._encode(vae, index, record))
            fault_point("caching")
        return len(missing)

    def _encode(self, vae, index: int, image: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return encoded(vae, image, self.images.examples[index].name)

    def _decoded(self, items: list[tuple[int, bool]], num_workers: int) -> Iterator[dict]:
        """The pictures of (index, flip) pairs, in order, by worker processes; a few at a time wait to be taken.

        Raises:
            DataError: a picture cannot be decoded, or its worker died or was silent for WORKER_TIMEOUT_SECONDS.
        """
        if not (num_workers and items):
            yield from (self.images.load(*item) for item in items)
            return
        prefetch: deque = deque()
        # On leaving, whatever still runs is ended.
        with PROCESSES.Pool(min(num_workers, len(items)), _decode_for, (self.images,)) as pool:
            wait_for_start(pool)
            for item in [*items, *[None] * 2 * num_workers]:
                if item is not None:
                    prefetch.append((item, pool.apply_async(_decode, item)))
                if prefetch and (item is None or len(prefetch) > 2 * num_workers):
                    (index, _), result = prefetch.popleft()
                    try:
                        record = result.get(WORKER_TIMEOUT_SECONDS)
                    except multiprocessing.TimeoutError:
                        raise DataError(
                            f"the process that decodes {self.images.examples[index].name} died or hangs: no answer "
                            f"for {WORKER_TIMEOUT_SECONDS} s. Look at the picture, or use --dataloader_num_workers 0."
                        ) from None
                    if isinstance(record, str):
                        raise DataError(record)
                    yield {name: torch.from_numpy(array) for name, array in record.items()}


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
