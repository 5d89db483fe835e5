"""Pictures -> captions, by Florence-2 or any other captioner that transformers serves.

Knows no folders and no trigger word. Never runs code of a repository (no trust_remote_code) and loads no pickles.
Torch is imported where it is needed, so that --help and errors in flags do not wait for it.
"""

import dataclasses
import difflib
import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from PIL import Image

from preprocess.captions.batch_size import after_fit, first_and_most, with_memory_share
from sdxl_lora.errors import ConfigError

# what each task gives that is not a caption, by the names in transformers' Florence2Processor
NOT_CAPTIONS = {
    "<OD>": "boxes", "<DENSE_REGION_CAPTION>": "boxes", "<REGION_PROPOSAL>": "boxes", "<OCR_WITH_REGION>": "boxes",
    "<CAPTION_TO_PHRASE_GROUNDING>": "boxes for a phrase", "<REFERRING_EXPRESSION_SEGMENTATION>": "polygons",
    "<REGION_TO_SEGMENTATION>": "polygons", "<OPEN_VOCABULARY_DETECTION>": "boxes", "<REGION_TO_CATEGORY>": "a class",
    "<REGION_TO_DESCRIPTION>": "words about a region", "<REGION_TO_OCR>": "a region's text",
}  # fmt: skip


CAPTIONS = (
    "<CAPTION>",
    "<DETAILED_CAPTION>",
    "<MORE_DETAILED_CAPTION>",
    "<OCR>",
)  # a fine-tune has its own


@dataclasses.dataclass(frozen=True)
class CaptionerOptions:
    """A captioner; any other value gives other captions.

    Attributes:
        model: Hub id or folder.
        task: of Florence-2 and its fine-tunes, e.g. "<DETAILED_CAPTION>".
        prompt: for other models; what a chat model is asked, what a BLIP continues. None for the model's own way.
        dtype: "auto" (bfloat16 on a GPU, float32 elsewhere), "float32", "float16" or "bfloat16".
        attention: "auto", or an attention implementation of transformers.
    """

    model: str
    task: str = "<DETAILED_CAPTION>"
    prompt: str | None = None
    num_beams: int = 3
    max_new_tokens: int = 256
    dtype: str = "auto"
    attention: str = "auto"


def check_captioner(options: CaptionerOptions) -> None:
    """Loads what is small of the captioner, its config and its processor.

    Raises:
        ConfigError: not there, not reachable, of no class that captions, or a task that gives no caption.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    try:
        config = AutoConfig.from_pretrained(options.model)
        load_processor(options.model)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"cannot load the captioner {options.model} ({first_line}): give a folder with "
            "--caption_model FOLDER, or --caption_model none with .txt files or --fallback_caption"
        ) from None
    if options.task == "<OCR>" and config.model_type != "florence2":
        raise ConfigError(f"--ocr needs Florence-2; caption_model {options.model} is a {config.model_type}")
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ConfigError(f"caption_model {options.model} is a {config.model_type}, which writes no captions")
    near = difflib.get_close_matches(options.task, CAPTIONS, n=1, cutoff=0.88)
    if config.model_type == "florence2" and near and options.task not in CAPTIONS:
        raise ConfigError(f"caption_task {options.task} is unknown, did you mean {near[0]}?")
    if config.model_type == "florence2" and options.task in NOT_CAPTIONS:
        raise ConfigError(
            f"caption_task {options.task} gives {NOT_CAPTIONS[options.task]}, not a caption: use <CAPTION>, "
            "<DETAILED_CAPTION>, <MORE_DETAILED_CAPTION>, <OCR>, or a task of the fine-tune you load"
        )


class Captioner:
    """A function from RGB pictures to as many captions. `batch_size` is how many it wants next; see batch_size.py."""

    def __init__(self, model, processor, options: CaptionerOptions, batch_size: int | None):
        self.model, self.processor, self.options = model, processor, options
        self.batch_size, self.most = first_and_most(batch_size, model.device.type)

    def __call__(self, images: list[Image.Image]) -> list[str]:
        import torch

        texts: list[str] = []
        while len(texts) < len(images):
            batch = images[len(texts) :][: self.batch_size]
            work = partial(describe, self.model, self.processor, batch, self.options)
            try:
                new_texts, memory_share = with_memory_share(work, self.model.device)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                new_texts = None
            if new_texts is None:  # not above, where the error's traceback still holds the batch's tensors
                self.batch_size = self.most = len(batch) // 2
                torch.cuda.empty_cache()
                continue
            texts += new_texts
            if len(batch) == self.batch_size:
                self.batch_size = after_fit(self.batch_size, self.most, memory_share)
        return texts


@contextmanager
def captioner(options: CaptionerOptions, batch_size: int | None = None) -> Iterator[Captioner]:
    """A captioner whose model leaves memory when the context ends.

    Args:
        batch_size: most pictures at once; None to find out.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    device, dtype = device_and_dtype(options.dtype)
    processor = load_processor(options.model)
    attention = {} if options.attention == "auto" else {"attn_implementation": options.attention}
    with quiet_transformers():
        model = AutoModelForImageTextToText.from_pretrained(
            options.model, dtype=dtype, use_safetensors=True, **attention
        )
    caption = Captioner(model.to(device).eval(), processor, options, batch_size)
    del model, processor
    try:
        yield caption
    finally:
        caption.model = caption.processor = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def describe(model, processor, images: list[Image.Image], options: CaptionerOptions) -> list[str]:
    """One batch through the model: inputs, generation, words."""
    import torch

    inputs = model_inputs(model, processor, images, options).to(model.device)
    inputs = {
        name: tensor.to(model.dtype) if torch.is_floating_point(tensor) else tensor for name, tensor in inputs.items()
    }
    with torch.inference_mode():
        tokens = model.generate(
            **inputs, max_new_tokens=options.max_new_tokens, num_beams=options.num_beams, do_sample=False
        )
    if getattr(processor, "chat_template", None) and not model.config.is_encoder_decoder:  # the question comes first
        tokens = tokens[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(tokens, skip_special_tokens=True)
    return [" ".join(text.split()) for text in texts]


def model_inputs(model, processor, images: list[Image.Image], options: CaptionerOptions):
    """What the processor makes of the pictures and the question that this kind of model is asked."""
    if model.config.model_type == "florence2":
        return processor(images=images, text=[options.task] * len(images), return_tensors="pt")
    if getattr(processor, "chat_template", None):
        question = [{"type": "image"}, {"type": "text", "text": options.prompt or "Describe the picture in detail."}]
        text = processor.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        processor.tokenizer.padding_side = "left"
        return processor(images=[[i] for i in images], text=[text] * len(images), padding=True, return_tensors="pt")
    if options.prompt:
        return processor(images=images, text=[options.prompt] * len(images), return_tensors="pt")
    return processor(images=images, return_tensors="pt")


class Pair:
    """Image processor and tokenizer of a model that has no processor of both, such as ViT with GPT-2."""

    def __init__(self, model: str):
        from transformers import AutoImageProcessor, AutoTokenizer

        self.image_processor = AutoImageProcessor.from_pretrained(model)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.batch_decode = self.tokenizer.batch_decode

    def __call__(self, images: list[Image.Image], return_tensors: str):
        return self.image_processor(images, return_tensors=return_tensors)


def load_processor(model: str):
    """
    Raises:
        OSError, ValueError: there is none that takes pictures and gives words.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model)
    both = hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")
    return processor if both else Pair(model)


def device_and_dtype(dtype: str):
    import torch

    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        best = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    else:
        device, best = torch.device("cpu"), torch.float32
    return device, best if dtype == "auto" else getattr(torch, dtype)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bar for the loading of weights and no advice on models: the console belongs to the pictures."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
