"""What the page calls a field, in English, and which fields are always in view. The rest follows from their names."""

from sdxl_lora.config import PreprocessConfig, TrainConfig

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
    },
}

ACRONYMS = {"lr": "learning rate", "snr": "SNR", "vae": "VAE", "dora": "DoRA", "rslora": "rsLoRA", "lora": "LoRA",
            "tf32": "TF32", "8bit": "8-bit", "dir": "folder", "num": "number of", "hub": "Hub"}  # fmt: skip


def label_of(config_class: type, name: str) -> str:
    if name in LABELS[config_class]:
        return LABELS[config_class][name]
    words = " ".join(ACRONYMS.get(word, word) for word in name.split("_"))
    return words[0].upper() + words[1:]
