"""VAE moments and text embeddings on disk, filled once before training and read in every step.

A record is one safetensors file whose name is a key over all that it depends on: the picture's bytes, sizes and
mirroring, or the caption; the encoder's weights and precision. So a changed caption or picture redoes only itself, and
runs can share a folder. Loads the encoders and frees them. Knows no UNet.
"""

import hashlib
import json
import mmap
import multiprocessing
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from tqdm import tqdm

from sdxl_lora.data import TrainingPictures, content_key
from sdxl_lora.errors import DataError, NonFiniteError
from sdxl_lora.faults import fault_point
from sdxl_lora.memo import NO_MEMO, Memo, file_facts
from sdxl_lora.memory import free_memory
from sdxl_lora.models import Base, load_text_encoders, load_tokenizers, load_vae, part_files
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
    With `load_vae`, a record that turns out to be damaged when it is read is made again, on the CPU.
    With `live_vae`, nothing is kept: it encodes each picture when it is read.
    """

    def __init__(
        self, folder: Path, pictures: TrainingPictures, vae_key: str, load_vae: Callable | None = None, live_vae=None
    ):
        self.folder, self.pictures, self.vae_key = folder / "latents", pictures, vae_key
        self.load_vae, self.live_vae = load_vae, live_vae

    def path(self, index: int, flip: bool) -> Path:
        return record_path(self.folder, self.pictures.examples[index].key, self.vae_key, flip)

    def read(self, index: int, flip: bool = False) -> dict[str, torch.Tensor]:
        if self.live_vae is not None:
            return self._encode(self.live_vae, index, self.pictures.load(index, flip))
        try:
            return read_record(self.path(index, flip))
        except DataError:
            if self.load_vae is None:
                raise
            warnings.warn(f"{self.path(index, flip)} is damaged and is made again", stacklevel=2)
            write_record(self.path(index, flip), self._encode(self.load_vae(), index, self.pictures.load(index, flip)))
            return read_record(self.path(index, flip))

    def missing(self, flips: Iterable[bool], workers: Workers) -> list[tuple[int, bool]]:
        """This process's share of the records that are not there, or not whole."""
        wanted = [(index, flip) for index in range(len(self.pictures)) for flip in flips]
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

    def _encode(self, vae, index: int, picture: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return encoded(vae, picture, self.pictures.examples[index].name)

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


def encoded(vae, picture: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The record of a picture as TrainingPictures.load gives it; see LatentCache.

    Raises:
        NonFiniteError: the VAE gives NaN or infinity.
    """
    record = {key: tensor for key, tensor in picture.items() if key != "pixels"}
    record |= vae_moments(vae, picture["pixels"][None])
    if "mask" in record:
        record["mask"] = F.adaptive_avg_pool2d(record["mask"], record["mean"].shape[-2:])
    if not (record["mean"].isfinite().all() and record["std"].isfinite().all()):
        raise NonFiniteError(f"the VAE gives NaN or infinity for {name}: look at the picture and at the VAE")
    return record


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
    With `load_parts`, which gives these, a record that turns out to be damaged is made again, on the CPU.
    """

    def __init__(
        self,
        folder: Path,
        encoders_key: str,
        chunks: int = 1,
        live_parts: tuple | None = None,
        load_parts: Callable | None = None,
    ):
        self.folder, self.encoders_key, self.chunks = folder / "text", encoders_key, chunks
        self.live_parts, self.load_parts = live_parts, load_parts

    def path(self, prompt: str) -> Path:
        more = (self.chunks,) if self.chunks > 1 else ()
        return record_path(self.folder, prompt, self.encoders_key, *more)

    def read(self, prompt: str) -> dict[str, torch.Tensor]:
        if self.live_parts and not self.path(prompt).exists():
            return self.encode(prompt, *self.live_parts)
        try:
            return read_record(self.path(prompt))
        except DataError:
            if self.load_parts is None:
                raise
            warnings.warn(f"{self.path(prompt)} is damaged and is made again", stacklevel=2)
            write_record(self.path(prompt), self.encode(prompt, *self.load_parts()))
            return read_record(self.path(prompt))

    def missing(self, prompts: Iterable[str], workers: Workers) -> list[str]:
        """This process's share of the prompts whose records are not there, or not whole."""
        return [prompt for prompt in workers.share(sorted(set(prompts))) if not is_whole(self.path(prompt))]

    def encode(self, prompt: str, tokenizers, text_encoders) -> dict[str, torch.Tensor]:
        """One prompt at a time: in a batch the last bits would depend on what else is in it."""
        prompt_embeds, pooled_embeds = encode_prompts([prompt], tokenizers, text_encoders, self.chunks)
        return {"prompt_embeds": prompt_embeds[0].cpu(), "pooled_embeds": pooled_embeds[0].cpu()}

    def fill(self, prompts: Iterable[str], tokenizers, text_encoders, workers: Workers) -> int:
        """Encode what is missing, each process its share. Returns how many records this process wrote."""
        missing = self.missing(prompts, workers)
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
    latents_live: bool = False,
    encode_live: bool = False,
    read_live: Iterable[str] = (),
    memo: Memo = NO_MEMO,
) -> tuple[LatentCache, TextCache]:
    """Both caches, full: every picture, and every caption and prompt. One encoder is in memory at a time, then none.

    Args:
        captions: all that will be read beside `prompts`; None for the examples' as they are written.
        latents_live: the VAE stays, and latents are not kept.
        encode_live: the text encoders stay, for captions that are not among these.
        read_live: some that will be read so; too long ones are warned of like the others.
        memo: knows the keys of unchanged weights, so that a start that misses no record loads no encoder.
    """
    workers, flips = workers or Workers(), list(flips)
    vae = Once(lambda: load_vae(base).to(device))
    facts = [*map(file_facts, part_files(base, "vae"))]
    live_vae = vae()[0] if latents_live else None
    latents = LatentCache(folder, pictures, known_key(memo, "vae", facts, vae), lambda: load_vae(base), live_vae)
    if not latents_live and latents.missing(flips, workers):
        latents.fill(vae()[0], flips, num_workers, workers)
    vae.forget()

    tokenizers = load_tokenizers(base)
    encoders = Once(lambda: [encoder.to(device) for encoder in load_text_encoders(base, text_dtype)])
    facts = [*map(file_facts, part_files(base, "text_encoder") + part_files(base, "text_encoder_2"))]
    encoders_key = known_key(memo, f"text encoders in {text_dtype}", facts, encoders)
    live_parts = (tokenizers, encoders()) if encode_live else None
    text = TextCache(
        folder, encoders_key, chunks, live_parts, lambda: (tokenizers, load_text_encoders(base, text_dtype))
    )
    if captions is None:
        captions = [example.caption for example in pictures.examples]
    wanted = [*captions, *prompts]
    warn_of_long_prompts([*wanted, *read_live], tokenizers[0], chunks)
    if text.missing(wanted, workers):
        text.fill(wanted, tokenizers, encoders(), workers)
    encoders.forget()
    return latents, text


class Once:
    """Models that are loaded when they are first asked for, if at all, and then stay until they are forgotten."""

    def __init__(self, load: Callable):
        self.load, self.models = load, None

    def __call__(self) -> list[torch.nn.Module]:
        if self.models is None:
            loaded = self.load()
            self.models = loaded if isinstance(loaded, list) else [loaded]
        return self.models

    def forget(self) -> None:
        self.models = None
        free_memory()


def known_key(memo: Memo, kind: str, files: list, models: Once) -> str:
    """`weights_key` of models by the facts of their files; where these cannot be told, the models are loaded for it."""

    def make() -> str:
        return "".join(map(weights_key, models()))

    return memo.recall([kind, *files], make) if files else make()


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
    """Whole or not at all, with a checksum: save_file writes under a temporary name and renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {name: tensor.contiguous() for name, tensor in record.items()}
    checksum = zlib.crc32(data_of(save(record)))
    save_file(record, path, {"crc32": f"{checksum:08x}"})


def data_of(file: bytes | memoryview) -> memoryview:
    """What stands in a safetensors file behind its header."""
    return memoryview(file)[8 + int.from_bytes(file[:8], "little") :]


def is_whole(path: Path) -> bool:
    """Is a record there in its full length? Looks at its header alone."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            data_begin = file.tell()
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return path.stat().st_size == data_begin + max(ends)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError):
        return False


def read_record(path: Path) -> dict[str, torch.Tensor]:
    """Memory-mapped, its checksum compared.

    Raises:
        DataError: the record is not there or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file, open(path, "rb") as raw:
            checksum = (file.metadata() or {}).get("crc32")
            with mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                if checksum is not None and zlib.crc32(data_of(mapped)) != int(checksum, 16):
                    raise SafetensorError("its checksum does not fit")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(
            f"{path} is a damaged cache record ({error}): delete it and run the same command again"
        ) from None
