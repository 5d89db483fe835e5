"""VAE moments and text embeddings on disk, filled once before training and read in every step.

A record is one safetensors file named by a key over everything it depends on: the image's bytes, sizes and mirroring,
or the caption; and the encoder's weights and precision. So a changed caption or image only redoes its own record, and
runs can share a folder. Loads the encoders and frees them. Knows no UNet.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from sdxl_lora.cache.latents import LatentCache
from sdxl_lora.cache.records import Workers
from sdxl_lora.cache.text_embeddings import TextCache, warn_of_long_prompts
from sdxl_lora.data.image_dataset import Images
from sdxl_lora.io.memo import NO_MEMO, FileMemo, file_stamp
from sdxl_lora.models.base_source import Base, part_files
from sdxl_lora.models.latents import normalisation_key
from sdxl_lora.models.loading import load_text_encoders, load_tokenizers, load_vae
from sdxl_lora.models.vae import VaeEncoder
from sdxl_lora.performance.device_memory import free_memory


def fill_caches(
    folder: Path,
    base: Base,
    images: Images,
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
    memo: FileMemo = NO_MEMO,
    vae_dtype: torch.dtype = torch.float32,
    vae_batch_size: int = 1,
) -> tuple[LatentCache, TextCache]:
    """Fill and return both caches, for all images, captions and prompts. One encoder is in memory at a time, then none.

    Args:
        captions: all that will be read beside `prompts`; None for those of the examples as written.
        latents_live: keep the VAE loaded, and store no latents.
        encode_live: keep the text encoders loaded, for captions that are not among these.
        read_live: some captions that will be encoded live; included in the warning of long ones.
        memo: holds the keys of unchanged weights, so that a start with all records present loads no encoder.
        vae_dtype: see VaeEncoder.
        vae_batch_size: images of one size that the VAE encodes at once.
    """
    workers, flips = workers or Workers(), list(flips)
    vae = Once(lambda: load_vae(base).to(device))
    facts = [*map(file_stamp, part_files(base, "vae"))]
    vae_key = key_in(vae_dtype, known_key(memo, "vae", facts, vae))
    live = VaeEncoder(vae()[0], vae_dtype) if latents_live else None
    latents = LatentCache(folder, images, vae_key, lambda: load_vae(base), live, vae_batch_size)
    if not latents_live and latents.missing(flips, workers):
        latents.fill(VaeEncoder(vae()[0], vae_dtype), flips, num_workers, workers)
    vae.forget()

    tokenizers = load_tokenizers(base)
    encoders = Once(lambda: [encoder.to(device) for encoder in load_text_encoders(base, text_dtype)])
    facts = [*map(file_stamp, part_files(base, "text_encoder") + part_files(base, "text_encoder_2"))]
    encoders_key = known_key(memo, f"text encoders in {text_dtype}", facts, encoders)
    live_parts = (tokenizers, encoders()) if encode_live else None
    text = TextCache(
        folder, encoders_key, chunks, live_parts, lambda: (tokenizers, load_text_encoders(base, text_dtype))
    )
    if captions is None:
        captions = [caption for example in images.examples for caption in example.captions]
    wanted = [*captions, *prompts]
    warn_of_long_prompts([*wanted, *read_live], tokenizers[0], chunks)
    if text.missing(wanted, workers):
        text.fill(wanted, tokenizers, encoders(), workers)
    encoders.forget()
    return latents, text


class Once:
    """Models loaded on first use and kept until `forget`."""

    def __init__(self, load: Callable):
        self.load = load
        self.models: list[torch.nn.Module] | None = None

    def __call__(self) -> list[torch.nn.Module]:
        if self.models is None:
            loaded = self.load()
            self.models = loaded if isinstance(loaded, list) else [loaded]
        return self.models

    def forget(self) -> None:
        self.models = None
        free_memory()


def known_key(memo: FileMemo, kind: str, files: list, models: Once) -> str:
    """Return `weights_key` of models by the facts of their files; load the models for it if these are unknown."""

    def make() -> str:
        return "".join(map(weights_key, models()))

    return memo.get_or_compute([kind, *files], make, lambda key: isinstance(key, str)) if files else make()


def key_in(vae_dtype: torch.dtype, vae_key: str) -> str:
    """Return the key of a VAE that encodes in a dtype; for float32 that of its weights."""
    return vae_key if vae_dtype == torch.float32 else f"{vae_key} in {vae_dtype}"


def weights_key(model: torch.nn.Module) -> str:
    """Return 32 hexadecimal digits over names, dtypes and values of a model's tensors, and over a VAE's shift."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    if isinstance(config := getattr(model, "config", None), Mapping):
        digest.update(normalisation_key(config).encode())
    return digest.hexdigest()
