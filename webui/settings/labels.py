"""What the page calls a field, in English, and which fields are always in view. The rest follows from their names."""

from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from webui.settings.fields import fields_of

BASIC = {
    PreprocessConfig: (
        "input_dir", "output_dir", "trigger_word", "fallback_caption", "caption_task", "resolution",
    ),
    TrainConfig: (
        "output_dir", "pretrained_model_name_or_path", "train_data_dir", "num_train_epochs", "max_train_steps",
        "learning_rate", "train_batch_size", "resolution", "rank", "lora_alpha", "train_text_encoder", "train_unet",
        "optimizer", "lr_scheduler", "mixed_precision", "gradient_checkpointing", "checkpointing_epochs",
        "validation_prompt",
    ),
}  # fmt: skip

LABELS = {
    PreprocessConfig: {
        "input_dir": "Source folder",
        "output_dir": "Name of the dataset",
        "fallback_caption": "Concept",
        "leave_out": "Images not to use",
        "ocr": "Look for writing",
        "buckets": "Several sizes",
        "max_aspect": "Longest shape",
        "caption_batch_size": "Images captioned at once",
        "caption_num_beams": "Beams",
        "caption_max_new_tokens": "Longest caption",
        "caption_dtype": "Captioner's precision",
        "caption_attention": "Captioner's attention",
        "format": "Form of the dataset",
        "max_shard_mb": "Megabytes a parquet shard",
        "hub_dataset_id": "Repository on the Hub",
        "hub_private": "Private repository",
        "num_workers": "Processes",
        "train_batch_size": "Planned batch size",
    },
    TrainConfig: {
        "output_dir": "Name of the run",
        "pretrained_model_name_or_path": "Base model",
        "pretrained_vae_model_name_or_path": "VAE",
        "pretrained_config_name_or_path": "Configs of the base",
        "train_data_dir": "Dataset",
        "dataset_name": "Dataset on the Hub",
        "dataset_config_name": "Configuration on the Hub",
        "lora_alpha": "Alpha",
        "lokr_factor": "LoKr factor",
        "num_train_epochs": "Epochs",
        "train_batch_size": "Batch size",
        "train_text_encoder": "Train the text encoders too",
        "train_unet": "Train the UNet",
        "lr_scheduler": "Schedule",
        "lr_warmup_steps": "Warm-up steps",
        "mixed_precision": "Precision",
        "checkpointing_epochs": "Save every N epochs",
        "checkpointing_steps": "Save every N steps",
        "validation_prompt": "Sample prompts",
        "num_validation_images": "Images per sample prompt",
        "max_train_steps": "Steps",
        "output_preservation": "Share that preserves the base",
        "preservation_class": "Class word",
        "ema_decay": "EMA decay",
        "use_dora": "DoRA",
        "use_rslora": "rsLoRA",
        "use_8bit_adam": "8-bit Adam",
        "text_encoder_lr": "Text encoders' learning rate",
        "text_encoder_2_lr": "Second text encoder's learning rate",
        "gradient_accumulation_steps": "Micro-steps in a step",
        "lr_num_cycles": "Cycles",
        "lr_power": "Power",
        "lr_decay_share": "Falling share",
        "lora_plus_ratio": "LoRA+ ratio",
        "max_grad_norm": "Largest gradient norm",
        "process_timeout_seconds": "Seconds to wait for a process",
        "dataloader_num_workers": "Reading processes",
        "vae_batch_size": "Images at once in the VAE",
        "vae_precision": "VAE precision",
        "checkpoints_total_limit": "Checkpoints to keep",
        "loras_dir": "LoRA folder",
        "validation_epochs": "Draw every N epochs",
        "validation_steps": "Draw every N steps",
        "validation_inference_steps": "Denoising steps",
        "validation_guidance_scale": "Guidance",
        "validation_split": "Share held out",
        "best_by": "Best by",
        "early_stopping_patience": "Patience",
        "early_stopping_min_delta": "Least improvement",
        "report_to": "Trackers",
        "hub_model_id": "Repository on the Hub",
        "hub_private": "Private repository",
    },
}

HELP = {  # of the fields in view, in words for who knows no flags; the others have the command line's
    PreprocessConfig: {
        "input_dir": "A folder where this page runs: choose one, or type its path. Nothing in it is changed.",
        "output_dir": "One project may hold several datasets.",
        "trigger_word": "A made-up word that stands for your subject, such as sks. It comes first in every caption.",
        "fallback_caption": "What all images show, in a few words: a dog. It is the caption of images without one.",
        "caption_task": "How much auto-caption writes about an image.",
        "resolution": "1024 is what SDXL was made for. Smaller images are left out, and you are told which.",
    },
    TrainConfig: {
        "output_dir": "Checkpoints, samples and the finished LoRA lie in a folder of this name.",
        "pretrained_model_name_or_path": "The SDXL model that the LoRA is for: a file, a folder, or a name on the Hub.",
        "train_data_dir": "One that was prepared here, or a folder of images with .txt captions beside them.",
        "num_train_epochs": "How often each image is looked at. Leave it empty for what suffices: about 100 times.",
        "max_train_steps": "Where it is given, it counts in place of the epochs.",
        "learning_rate": "How much each step changes. Too high burns in, too low learns nothing.",
        "train_batch_size": "Images looked at in one step. More need more memory; auto takes what fits.",
        "resolution": "As it was prepared. Less is quicker and needs less memory.",
        "rank": "Room for what is learned, and the size of the file: 8 to 32 suit most subjects.",
        "lora_alpha": "How strongly it is applied, beside the rank. Leave it empty for the rank's own number.",
        "train_text_encoder": "Helps with odd trigger words; costs time and memory.",
        "train_unet": "Untick it to train the text encoders alone.",
        "optimizer": "adamw is the usual one; the 8-bit ones save memory; prodigy finds its own rate.",
        "lr_scheduler": "How the learning rate goes on: as it is, or down towards the end.",
        "mixed_precision": "auto takes what your graphics card is best at.",
        "gradient_checkpointing": "Needs far less memory, and a third more time. For cards of up to 16 GB.",
        "checkpointing_epochs": "Each can be tried, and gone on from, later.",
        "validation_prompt": "What to draw while it trains, to see it learn: one line each, with the trigger word.",
    },
}

ACRONYMS = {"lr": "learning rate", "snr": "SNR", "vae": "VAE", "dora": "DoRA", "rslora": "rsLoRA", "lora": "LoRA",
            "tf32": "TF32", "8bit": "8-bit", "dir": "folder", "num": "number of", "hub": "Hub"}  # fmt: skip


def groups_of(config_class: type) -> dict[str, list[str]]:
    """The names of the fields by title: first, under "", those that are always in view, then each section's others."""
    groups = {"": list(BASIC[config_class])}
    for name, field in fields_of(config_class).items():
        if name not in groups[""]:
            groups.setdefault(field.section, []).append(name)
    return groups


def label_of(config_class: type, name: str) -> str:
    if name in LABELS[config_class]:
        return LABELS[config_class][name]
    words = " ".join(ACRONYMS.get(word, word) for word in name.split("_"))
    return words[0].upper() + words[1:]


def help_of(config_class: type, name: str) -> str:
    return HELP[config_class].get(name, fields_of(config_class)[name].help)
