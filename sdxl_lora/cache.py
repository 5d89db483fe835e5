"""VAE moments and text embeddings on disk, filled once before training and read in every step.

A record is one safetensors file whose name is a key over all that it depends on: the picture's bytes, sizes and
mirroring, or the caption; the encoder's weights and precision. So a changed caption or picture redoes only itself, and
runs can share a folder. Loads the encoders and frees them. Knows no UNet.
"""

import hashlib
import multiprocessing
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from sdxl_lora.data import TrainingPictures, content_key
from sdxl_lora.errors import DataError, NonFiniteError
from sdxl_lora.faults import fault_point
from sdxl_lora.memory import free_memory
from sdxl_lora.models import Base, load_text_parts, load_vae
from sdxl_lora.text import CHUNK, encode_prompts, token_count

WORKER_TIMEOUT_SECONDS = 120  # decoding the largest picture that is accepted takes seconds


@dataclass(frozen=True)
class Workers:
    """This process among those that fill the cache together.

    should_stop: asked before each record; once it is true the caches stay as far as they are.
    """

    rank: int = 0
    world: int = 1
    should_stop: Callable[[], object] = lambda: False

    def share(self, items: list) -> list:
        return items[self.rank :: self.world]


def workers_of(part: str | None, rank: int, world: int, should_stop: Callable[[], object]) -> Workers:
    """A process of one job alone, or of part "i/n" among n jobs of as many processes."""
    number, jobs = map(int, (part or "1/1").split("/"))
    return Workers((number - 1) * world + rank, jobs * world, should_stop)


class LatentCache:
    """VAE moments of pictures: `mean` and `std` (C, h, w) float32, times the VAE's scaling_factor, and the sizes.

    With masks also `mask` (1, h, w): the share of each latent's square of pixels that counts.
    """

    def __init__(self, folder: Path, pictures: TrainingPictures, vae_key: str):
        self.folder, self.pictures, self.vae_key = folder / "latents", pictures, vae_key

    def path(self, index: int, flip: bool) -> Path:
        return record_path(self.folder, self.pictures.examples[index].key, self.vae_key, flip)

    def read(self, index: int, flip: bool = False) -> dict[str, torch.Tensor]:
        return read_record(self.path(index, flip))

    def fill(self, vae, flips: Iterable[bool], num_workers: int, workers: Workers) -> int:
        """Encode what is missing, each process its share. Returns how many records this process wrote.

        Raises:
            DataError: a picture cannot be decoded.
            NonFiniteError: the VAE gave NaN or infinity for a picture, which is named.
        """
        wanted = [(index, flip) for index in range(len(self.pictures)) for flip in flips]
        missing = [item for item in workers.share(wanted) if not self.path(*item).exists()]
        records = self._decoded(missing, num_workers)
        for (index, flip), record in tqdm(
            zip(missing, records, strict=True),
            desc="caching latents", total=len(missing), disable=workers.rank > 0 or not missing,
        ):  # fmt: skip
            if workers.should_stop():
                break
            record |= vae_moments(vae, record.pop("pixels")[None])
            if "mask" in record:
                record["mask"] = F.adaptive_avg_pool2d(record["mask"], record["mean"].shape[-2:])
            if not (record["mean"].isfinite().all() and record["std"].isfinite().all()):
                name = self.pictures.examples[index].name
                raise NonFiniteError(f"the VAE gives NaN or infinity for {name}: look at the picture and at the VAE")
            write_record(self.path(index, flip), record)
            fault_point("caching")
        return len(missing)

    def _decoded(self, items: list[tuple[int, bool]], num_workers: int) -> Iterator[dict]:
        """The pictures of (index, flip) pairs, in order, by worker processes; a few at a time wait to be taken.

        Raises:
            DataError: a picture cannot be decoded, or its worker died or was silent for WORKER_TIMEOUT_SECONDS.
        """
        if not num_workers:
            yield from (self.pictures.load(*item) for item in items)
            return
        ahead = deque()
        # On leaving, whatever still runs is ended.
        with multiprocessing.Pool(num_workers, _decode_for, (self.pictures,)) as pool:
            for item in [*items, *[None] * 2 * num_workers]:
                if item is not None:
                    ahead.append((item, pool.apply_async(_decode, item)))
                if ahead and (item is None or len(ahead) > 2 * num_workers):
                    (index, _), result = ahead.popleft()
                    try:
                        record = result.get(WORKER_TIMEOUT_SECONDS)
                    except multiprocessing.TimeoutError:
                        raise DataError(
                            f"the process that decodes {self.pictures.examples[index].name} died or hangs: no answer "
                            f"for {WORKER_TIMEOUT_SECONDS} s. Look at the picture, or use --dataloader_num_workers 0."
                        ) from None
                    if isinstance(record, str):
                        raise DataError(record)
                    yield {name: torch.from_numpy(array) for name, array in record.items()}


def _decode_for(pictures: TrainingPictures) -> None:
    """Start of a worker process: what it decodes from."""
    _decode.pictures = pictures


def _decode(index: int, flip: bool) -> dict | str:
    """In a worker process: the picture, or what is wrong with it (some exceptions do not survive the way back).

    As arrays: torch would hand over open files, which are gone with a worker that dies.
    """
    try:
        return {name: tensor.numpy() for name, tensor in _decode.pictures.load(index, flip).items()}
    except DataError as error:
        return str(error)


@torch.no_grad()
def vae_moments(vae, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean and standard deviation (C, h, w) float32 of one picture's latents, times scaling_factor.

    Args:
        pixels: (1, 3, H, W) in [-1, 1].
    """
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    scale = vae.config.scaling_factor
    return {"mean": posterior.mean[0].float().cpu() * scale, "std": posterior.std[0].float().cpu() * scale}


class TextCache:
    """Embeddings of prompts: `prompt_embeds` (77 * chunks, D) and `pooled_embeds` (P,), each prompt stored once.

    With `live_parts`, tokenizers and encoders, prompts that are not stored are encoded when they are read.
    """

    def __init__(self, folder: Path, encoders_key: str, chunks: int = 1, live_parts: tuple | None = None):
        self.folder, self.encoders_key, self.chunks = folder / "text", encoders_key, chunks
        self.live_parts = live_parts

    def path(self, prompt: str) -> Path:
        more = (self.chunks,) if self.chunks > 1 else ()
        return record_path(self.folder, prompt, self.encoders_key, *more)

    def read(self, prompt: str) -> dict[str, torch.Tensor]:
        if self.live_parts and not self.path(prompt).exists():
            return self.encode(prompt, *self.live_parts)
        return read_record(self.path(prompt))

    def encode(self, prompt: str, tokenizers, text_encoders) -> dict[str, torch.Tensor]:
        """One prompt at a time: in a batch the last bits would depend on what else is in it."""
        prompt_embeds, pooled_embeds = encode_prompts([prompt], tokenizers, text_encoders, self.chunks)
        return {"prompt_embeds": prompt_embeds[0].cpu(), "pooled_embeds": pooled_embeds[0].cpu()}

    def fill(self, prompts: Iterable[str], tokenizers, text_encoders, workers: Workers) -> int:
        """Encode what is missing, each process its share. Returns how many records this process wrote."""
        missing = [prompt for prompt in workers.share(sorted(set(prompts))) if not self.path(prompt).exists()]
        for prompt in tqdm(missing, desc="caching text embeddings", disable=workers.rank > 0 or not missing):
            if workers.should_stop():
                break
            write_record(self.path(prompt), self.encode(prompt, tokenizers, text_encoders))
        return len(missing)


def fill_caches(
    folder: Path,
    base: Base,
    pictures: TrainingPictures,
    prompts: Iterable[str],
    flips: Iterable[bool],
    device: torch.device,
    text_dtype: torch.dtype,
    num_workers: int = 0,
    workers: Workers | None = None,
    captions: Iterable[str] | None = None,
    chunks: int = 1,
    encode_live: bool = False,
    read_live: Iterable[str] = (),
) -> tuple[LatentCache, TextCache]:
    """Both caches, full: every picture, and every caption and prompt. One encoder is in memory at a time, then none.

    Args:
        captions: all that will be read beside `prompts`; None for the examples' as they are written.
        encode_live: the text encoders stay, for captions that are not among these.
        read_live: some that will be read so; too long ones are warned of like the others.
    """
    workers = workers or Workers()
    vae = load_vae(base).to(device)
    latents = LatentCache(folder, pictures, weights_key(vae))
    latents.fill(vae, flips, num_workers, workers)
    del vae
    free_memory()

    tokenizers, text_encoders = load_text_parts(base, text_dtype)
    text_encoders = [encoder.to(device) for encoder in text_encoders]
    encoders_key = "".join(weights_key(encoder) for encoder in text_encoders)
    text = TextCache(folder, encoders_key, chunks, (tokenizers, text_encoders) if encode_live else None)
    if captions is None:
        captions = [example.caption for example in pictures.examples]
    wanted = [*captions, *prompts]
    warn_of_long_prompts([*wanted, *read_live], tokenizers[0], chunks)
    text.fill(wanted, tokenizers, text_encoders, workers)
    del text_encoders
    free_memory()
    return latents, text


def warn_of_long_prompts(prompts: Iterable[str], tokenizer, chunks: int) -> None:
    counts = {prompt: token_count(prompt, tokenizer) for prompt in set(prompts)}
    long = [prompt for prompt, count in counts.items() if count > CHUNK * chunks]
    if long:
        longest = max(counts.values())
        warnings.warn(
            f"{len(long)} prompts are longer than {CHUNK * chunks} tokens and are cut there, like {min(long)[:60]!r}; "
            f"--max_caption_chunks {-(-longest // CHUNK)} reads them whole",
            stacklevel=3,
        )


def weights_key(model: torch.nn.Module) -> str:
    """32 hexadecimal digits over names, types and values of a model's tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def record_path(folder: Path, *facts) -> Path:
    """The record's file, in one of 256 subfolders so that none grows too large to list."""
    key = content_key(b"", *facts)
    return folder / key[:2] / f"{key}.safetensors"


def write_record(path: Path, record: dict[str, torch.Tensor]) -> None:
    """Whole or not at all: save_file writes under a temporary name and renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in record.items()}, path)


def read_record(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} is a damaged cache record ({error}): delete it and run the same command again"
        ) from None
