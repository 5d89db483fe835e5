"""Metadata in a LoRA file, and lines that show users how to load it. Works on strings only.

Keys: kohya's `ss_*` (A1111, Forge and ComfyUI's managers show them) and the Model Spec's `modelspec.*`
(https://github.com/Stability-AI/ModelSpec). Nothing private is written: no paths, user names or tokens.
"""

import base64
import json
from datetime import datetime
from pathlib import PurePath

from sdxl_lora.config.trigger_word import with_trigger_word

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "flow": "flow"}  # by prediction_type, in clients' spelling
IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"  # the Model Spec's value for SDXL in sgm names


def lora_metadata(
    title: str,
    *,
    started_at: datetime | None = None,
    finished_at: datetime | None = None,
    trigger_phrase: str = "",
    resolution: tuple[int, int] = (1024, 1024),
    base_model: str = "",
    base_model_sha256: str = "",
    epochs: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    learning_rate: float | None = None,
    images: int | None = None,
    tag_frequency: dict[str, int] | None = None,
    thumbnail_jpeg: bytes = b"",
    prediction_type: str = "epsilon",
    flow_shift: float | None = None,
) -> dict[str, str]:
    """Return the metadata of one LoRA file; `write_lora_files` adds facts from the tensors.

    Args:
        title: the output name.
        resolution: (width, height) in pixels.
        base_model: a Hub id or a name; for a path only the last part is kept.
        base_model_sha256: hex digest of the base's file, if there is one.
        tag_frequency: number of captions that hold each tag; stored as one data set called "images".
        thumbnail_jpeg: a small JPEG, at most 1 MB; stored as a data URL.
        prediction_type: one of PREDICTIONS; with "flow", flow_shift is that of its samples.
    Raises:
        ValueError: the thumbnail is no JPEG or too large, or the prediction type is unknown.
    """
    width, height = resolution
    values = {
        "ss_output_name": title,
        "ss_training_started_at": started_at and started_at.timestamp(),
        "ss_training_finished_at": finished_at and finished_at.timestamp(),
        "ss_resolution": f"({width}, {height})",
        "ss_sd_model_name": public_name(base_model),
        "ss_new_sd_model_hash": base_model_sha256,
        "ss_num_epochs": epochs,
        "ss_epoch": epochs,
        "ss_steps": steps,
        "ss_max_train_steps": steps,
        "ss_seed": seed,
        "ss_learning_rate": learning_rate,
        "ss_num_train_images": images,
        # Clients require {folder: {tag: count}} and raise on other shapes.
        "ss_tag_frequency": json.dumps({"images": tag_frequency}, ensure_ascii=False) if tag_frequency else None,
        "ss_dataset_dirs": json.dumps({"images": {"n_repeats": 1, "img_count": images}}) if images else None,
        "modelspec.title": title,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.date": finished_at and finished_at.isoformat(timespec="seconds"),
        "modelspec.trigger_phrase": trigger_phrase,
        "modelspec.prediction_type": published_prediction(prediction_type),
        "modelspec.usage_hint": flow_hint(flow_shift) if prediction_type == "flow" else None,
        "modelspec.thumbnail": data_url(thumbnail_jpeg) if thumbnail_jpeg else None,
    }
    return {key: str(value) for key, value in values.items() if value not in (None, "")}


def published_prediction(prediction_type: str) -> str:
    """Return the Model Spec's name of a prediction type; raise ValueError if it is none of PREDICTIONS."""
    if prediction_type not in PREDICTIONS:
        raise ValueError(f"prediction_type {prediction_type!r} must be one of {', '.join(PREDICTIONS)}.")
    return PREDICTIONS[prediction_type]


def flow_hint(shift: float | None) -> str:
    """Return the manual setting for clients, none of which sees from a base's file that it predicts a flow."""
    shifted = f" and shift {shift:g}" if shift is not None else ""
    return f"for a base that predicts a flow: in ComfyUI with the node ModelSamplingSD3{shifted}"


def data_url(jpeg: bytes) -> str:
    """Return a JPEG as a data URL; raise ValueError if it is no JPEG, or too large for clients."""
    if jpeg[:2] != b"\xff\xd8" or len(jpeg) > 1_000_000:
        raise ValueError(f"the thumbnail ({len(jpeg)} bytes) must be a JPEG of at most 1 MB: make it smaller.")
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def public_name(base_model: str) -> str:
    """Return a Hub id (`owner/name`) unchanged; for a path only its last part, which reveals nothing of the machine."""
    base_model = base_model.replace("\\", "/").rstrip("/")
    parts = PurePath(base_model).parts
    if len(parts) == 2 and not base_model.startswith((".", "/", "~")) and ":" not in base_model:
        return base_model
    return parts[-1] if parts else ""


def strength_metadata(strength: float) -> dict[str, str]:
    """Return the recommended strength, for people as the Model Spec's usage hint and for programs as a number."""
    return {"modelspec.usage_hint": f"recommended strength: {strength:g}", "recommended_strength": f"{strength:g}"}


def usage_lines(name: str, trigger_word: str = "", prompt: str = "", strength: float = 1.0) -> tuple[str, str]:
    """Return a line of Python for diffusers and a prompt with a LoRA tag for ComfyUI (by a node), A1111 and Forge.

    Args:
        name: file name without `.safetensors`.
        prompt: text of the prompt; the trigger word is prepended if missing.
    """
    prompt = with_trigger_word(prompt or "a photo", trigger_word)
    scale = "" if strength == 1 else f', cross_attention_kwargs={{"scale": {strength:g}}}'
    python = f'pipe.load_lora_weights("{name}.safetensors"); image = pipe({prompt!r}{scale}).images[0]'
    return python, f"{prompt} <lora:{name}:{strength:g}>"
