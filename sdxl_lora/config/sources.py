"""Hub ids given in place of a folder."""

from pathlib import Path

from sdxl_lora.errors import ConfigError


def check_source(text: str, setting: str, what: str) -> None:
    """Raise ConfigError unless `text` is on this machine or a valid Hub id; catches mistyped paths.

    Pipes and devices are refused too, since they cannot be read as a file or folder.
    """
    if Path(text).exists():
        if not (Path(text).is_file() or Path(text).is_dir()):
            raise ConfigError(f"{setting} {text!r} is a pipe or a device, it must be a file, a folder or a Hub id")
        return
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # 0.3 s, which --help does not wait for

    try:
        validate_repo_id(text)
    except HFValidationError:
        raise ConfigError(
            f"{setting} {text!r}: no such {what} here, and it is not a Hub id (owner/name) either"
        ) from None
