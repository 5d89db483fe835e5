"""What the page calls a field, in English, and which fields are always in view. The rest follows from their names."""

from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig

BASIC = {
    PreprocessConfig: (
        "input_dir", "output_dir", "trigger_word", "fallback_caption", "caption_task", "resolution",
    ),
    TrainConfig: (
        "output_dir", "pretrained_model_name_or_path", "train_data_dir", "num_train_epochs", "learning_rate",
        "train_batch_size", "resolution", "rank", "lora_alpha", "train_text_encoder", "optimizer", "lr_scheduler",
        "mixed_precision", "gradient_checkpointing", "checkpointing_epochs", "validation_prompt",
    ),
}  # fmt: skip

LABELS = {
    PreprocessConfig: {
        "input_dir": "Source folder",
        "output_dir": "Name of the dataset",
        "fallback_caption": "Concept",
        "ocr": "Look for writing",
        "buckets": "Several sizes",
        "max_aspect": "Longest shape",
        "caption_batch_size": "Pictures captioned at once",
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
        "num_train_epochs": "Epochs",
        "train_batch_size": "Batch size",
        "train_text_encoder": "Train the text encoders too",
        "lr_scheduler": "Schedule",
        "lr_warmup_steps": "Warm-up steps",
        "mixed_precision": "Precision",
        "checkpointing_epochs": "Save every N epochs",
        "checkpointing_steps": "Save every N steps",
        "validation_prompt": "Sample prompts",
        "num_validation_images": "Pictures per sample prompt",
        "max_train_steps": "Steps",
        "ema_decay": "EMA decay",
        "use_dora": "DoRA",
        "use_rslora": "rsLoRA",
        "use_8bit_adam": "8-bit Adam",
        "text_encoder_lr": "Text encoders' learning rate",
        "text_encoder_2_lr": "Second text encoder's learning rate",
        "gradient_accumulation_steps": "Micro-steps in a step",
        "lr_num_cycles": "Cycles",
        "lr_power": "Power",
        "lora_plus_ratio": "LoRA+ ratio",
        "max_grad_norm": "Largest gradient norm",
        "process_timeout_seconds": "Seconds to wait for a process",
        "dataloader_num_workers": "Reading processes",
        "checkpoints_total_limit": "Checkpoints to keep",
        "loras_dir": "LoRA folder",
        "validation_epochs": "Draw every N epochs",
        "validation_steps": "Draw every N steps",
        "validation_inference_steps": "Denoising steps",
        "validation_guidance_scale": "Guidance",
        "validation_split": "Share held out",
        "early_stopping_patience": "Patience",
        "early_stopping_min_delta": "Least improvement",
        "report_to": "Trackers",
        "hub_model_id": "Repository on the Hub",
        "hub_private": "Private repository",
    },
}

ACRONYMS = {"lr": "learning rate", "snr": "SNR", "vae": "VAE", "dora": "DoRA", "rslora": "rsLoRA", "lora": "LoRA",
            "tf32": "TF32", "8bit": "8-bit", "dir": "folder", "num": "number of", "hub": "Hub"}  # fmt: skip


def label_of(config_class: type, name: str) -> str:
    if name in LABELS[config_class]:
        return LABELS[config_class][name]
    words = " ".join(ACRONYMS.get(word, word) for word in name.split("_"))
    return words[0].upper() + words[1:]
