"""Caption images with Florence-2 or any other captioner that transformers supports.

Knows no folders and no trigger word. Never runs code of a repository (no trust_remote_code) and loads no pickles.
Imports torch only where needed, so that --help and errors in flags do not wait for it.
"""

import dataclasses
import logging
import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from PIL import Image

from preprocess.captions.batch_size import MEASURED, after_fit, first_and_most, with_memory_share
from preprocess.captions.caption_task import check_task
from preprocess.captions.captioner_files import check_layout, check_weights, content_of, no_safetensors
from sdxl_lora.config.sections.preprocess import CaptionerConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.io.hub_files import announce, downloads_of_model
from sdxl_lora.io.memo import FileMemo


class CutOff(str):
    """A caption that ended at max_new_tokens, most likely in mid-sentence."""


def check_captioner(config: CaptionerConfig) -> dict[str, str]:
    """Load all of the captioner but the values of its weights, which takes little time and memory.

    Returns:
        the settings that have no effect on it, each with a sentence that says so.
    Raises:
        ConfigError: the captioner is missing, unreachable, no captioning model or of an unsupported layout; weights are
            missing or left over; or the task gives no caption.
    """
    from transformers import AutoConfig, PreTrainedConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if int(os.environ.get("RANK", 0)) == 0:
        announce(downloads_of_model(config.model))
    with loading(config):
        check_layout(config.model, PreTrainedConfig.get_config_dict(config.model)[0])
        found = AutoConfig.from_pretrained(config.model, trust_remote_code=False)
        processor = load_processor(config.model)
    if config.caption_task == "<OCR>" and found.model_type != "florence2":
        raise ConfigError(f"--ocr needs Florence-2; caption_model {config.model} is a {found.model_type}")
    if found.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ConfigError(f"caption_model {config.model} is a {found.model_type}, which writes no captions")
    takes_prompt = not isinstance(processor, Pair)
    unused = check_task(config.caption_task, config.caption_prompt, found.model_type, takes_prompt)
    if not hasattr(found, "quantization_config"):  # quantization needs its device: checked on loading
        with loading(config):
            load_model(config, device_map="meta")
    return unused


def captioner_name(config: CaptionerConfig) -> str:
    """Return the settings that determine a caption, as caches name them; renamed settings keep these names."""
    return (
        f"CaptionerOptions(model={config.model!r}, task={config.caption_task!r}, "
        f"prompt={config.caption_prompt!r}, num_beams={config.caption_num_beams!r}, "
        f"max_new_tokens={config.caption_max_new_tokens!r}, dtype={config.caption_dtype!r}, "
        f"attention={config.caption_attention!r})"
    )


def content_name(config: CaptionerConfig, hidden: Path) -> str:
    """Return a key of what determines a caption: the captioner's files, wherever they lie, and the settings."""
    content = content_of(config.model, FileMemo(hidden / "captioner_files.json"))
    nameless = dataclasses.replace(config, caption_model=("",))
    return f"{content} {captioner_name(nameless)}"


class Captioner:
    """Return as many captions as RGB images. `batch_size` is the number it asks for next; see batch_size.py."""

    def __init__(self, model, processor, config: CaptionerConfig):
        self.model, self.processor, self.config = model, processor, config
        self.may_be_empty = config.caption_task == "<OCR>"
        self.batch_size, self.most = first_and_most(config.caption_batch_size, model.device.type)

    def __call__(self, images: list[Image.Image]) -> list[str]:
        import torch

        from sdxl_lora.performance.device_memory import free_memory

        texts: list[str] = []
        while len(texts) < len(images):
            batch = images[len(texts) :][: self.batch_size]
            work = partial(describe, self.model, self.processor, batch, self.config)
            try:
                new_texts, memory_share = with_memory_share(work, self.model.device)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                new_texts = None
            if new_texts is None:  # outside `except`, where the traceback still holds the batch's tensors
                self.batch_size = self.most = len(batch) // 2
                free_memory()
                continue
            texts += new_texts
            if len(batch) == self.batch_size:
                self.batch_size = after_fit(self.batch_size, self.most, memory_share)
        return texts


@contextmanager
def captioner(config: CaptionerConfig) -> Iterator[Captioner]:
    """Yield a captioner whose model leaves memory when the context ends."""
    from sdxl_lora.performance.device_memory import free_memory

    device, dtype = device_and_dtype(config.caption_dtype)
    processor = load_processor(config.model)
    model = load_model(config, dtype=dtype)
    caption = Captioner(model.to(device).eval(), processor, config)
    del model, processor
    try:
        yield caption
    finally:
        caption.model = caption.processor = None
        free_memory()


@contextmanager
def loading(config: CaptionerConfig) -> Iterator[None]:
    """Turn any error while loading foreign files into a one-line ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and no_safetensors(error):
            raise ConfigError(
                f"caption_model {config.model} has no model.safetensors, and pickles like pytorch_model.bin "
                "are not loaded, since they can run code: load one that has it, such as "
                "florence-community/Florence-2-base, or save this one again with save_pretrained(FOLDER)"
            ) from None
        model, lines = config.model, str(error).strip().splitlines() or [""]
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise ConfigError(
            f"cannot load the captioner {model} ({kind}{textwrap.shorten(lines[0], 200)}): give a folder with "
            "--caption_model FOLDER, or use --caption_model none with .txt files or --fallback_caption"
        ) from None


def load_model(config: CaptionerConfig, **where):
    """Load the captioner's model with every weight from its files.

    Args:
        where: dtype, or device_map "meta" for names and shapes alone.
    Raises:
        ConfigError: a weight is missing, left over or of another shape.
    """
    from transformers import AutoModelForImageTextToText

    if config.caption_attention != "auto":
        where["attn_implementation"] = config.caption_attention
    with quiet_transformers():
        model, found = AutoModelForImageTextToText.from_pretrained(
            config.model,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # check_weights reports them by name
            output_loading_info=True,
            **where,
        )
    check_weights(config.model, model.config.model_type, found)
    return model


def describe(model, processor, images: list[Image.Image], config: CaptionerConfig) -> list[str]:
    """Caption one batch; a caption that ended at max_new_tokens is a CutOff."""
    import torch

    inputs = model_inputs(model, processor, images, config).to(model.device)
    inputs = {
        name: tensor.to(model.dtype) if torch.is_floating_point(tensor) else tensor for name, tensor in inputs.items()
    }
    with torch.inference_mode():
        tokens = model.generate(
            **inputs, max_new_tokens=config.caption_max_new_tokens, num_beams=config.caption_num_beams, do_sample=False
        )
    cut_off = ended_by_limit(model, processor, tokens, config.caption_max_new_tokens)
    if getattr(processor, "chat_template", None) and not model.config.is_encoder_decoder:  # output repeats the prompt
        tokens = tokens[:, inputs["input_ids"].shape[1] :]
    texts = [" ".join(text.split()) for text in processor.batch_decode(tokens, skip_special_tokens=True)]
    return [CutOff(text) if cut and text else text for text, cut in zip(texts, cut_off, strict=True)]


def ended_by_limit(model, processor, tokens, max_new_tokens: int) -> list[bool]:
    """Return whether each row of tokens (B, L) ended at the limit instead of by itself.

    A row that ends by itself ends with an end token or padding. A model that forces an end token at the limit (BART,
    and so Florence-2) is judged by the length of the output.
    """
    generation, tokenizer = model.generation_config, processor.tokenizer
    padding, forced = generation.pad_token_id, ids_of(generation.forced_eos_token_id)
    ends = ids_of(generation.eos_token_id) | {tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
    if model.config.is_encoder_decoder and tokens.shape[1] > max_new_tokens:  # one more: the start token
        ends -= forced
    return [last != padding and last not in ends for last in tokens[:, -1].tolist()]


def ids_of(setting: int | list[int] | None) -> set[int]:
    return {setting} if isinstance(setting, int) else set(setting or ())


def model_inputs(model, processor, images: list[Image.Image], config: CaptionerConfig):
    """Return the processor's inputs for the images and the question, in the form that this kind of model expects."""
    if model.config.model_type == "florence2":
        return processor(images=images, text=[config.caption_task] * len(images), return_tensors="pt")
    if getattr(processor, "chat_template", None):
        question = [
            {"type": "image"},
            {"type": "text", "text": config.caption_prompt or "Describe the picture in detail."},
        ]
        text = processor.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        processor.tokenizer.padding_side = "left"
        return processor(images=[[i] for i in images], text=[text] * len(images), padding=True, return_tensors="pt")
    if config.caption_prompt:
        return processor(images=images, text=[config.caption_prompt] * len(images), return_tensors="pt")
    return processor(images=images, return_tensors="pt")


class Pair:
    """Image processor and tokenizer of a model without a processor for both, such as ViT with GPT-2."""

    def __init__(self, model: str):
        from transformers import AutoImageProcessor, AutoTokenizer

        self.image_processor = AutoImageProcessor.from_pretrained(model, trust_remote_code=False)
        self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        self.batch_decode = self.tokenizer.batch_decode

    def __call__(self, images: list[Image.Image], return_tensors: str):
        return self.image_processor(images, return_tensors=return_tensors)


def load_processor(model: str):
    """Load the model's processor, or a Pair where it has none for both images and text.

    Raises:
        OSError, ValueError: the model has no processor that reads images and writes text.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
    both = hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")
    return processor if both else Pair(model)


def device_and_dtype(dtype: str):
    import torch

    from sdxl_lora.distributed.accelerator import device_here
    from sdxl_lora.performance.compute import native_bfloat16

    device, best = device_here(), torch.float32
    if device.type != "cpu":
        best = torch.bfloat16 if native_bfloat16(device) else torch.float16
    if device.type in MEASURED:
        device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", 0)))
    return device, best if dtype == "auto" else getattr(torch, dtype)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' weight-loading bar and model advice; the console shows the images' progress."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
