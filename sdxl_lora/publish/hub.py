"""Upload of a trained LoRA to the Hub: permission is checked before any work, and only files for users are uploaded.

python -m sdxl_lora.publish.hub runs/cat me/cat        again, where an upload failed
"""

import argparse
import re
import sys
from pathlib import Path

import huggingface_hub
from huggingface_hub.utils import HFValidationError, validate_repo_id

from sdxl_lora.errors import ConfigError

SAMPLE = re.compile(r"\bsamples/[\w.-]+\.png")


class UploadError(RuntimeError):
    """Error of an upload; the local files are unchanged."""


def check_hub(name: str, setting: str) -> str:
    """Return the full id of the repository `name`.

    Args:
        setting: the flag that names it.
    Raises:
        ConfigError: nobody is logged in, the Hub cannot be reached, or the name is invalid.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"{setting} {name!r}: {error}") from None
    if not huggingface_hub.get_token():
        raise ConfigError("push_to_hub needs a login: run `hf auth login`, or set HF_TOKEN")
    if "/" in name:
        return name
    try:
        return f"{huggingface_hub.HfApi().whoami()['name']}/{name}"
    except Exception as error:  # requests, httpx and the Hub's library raise many kinds
        raise ConfigError(f"push_to_hub: the Hub does not answer ({error}); give --{setting} user/name") from None


def claim_repository(repository: str, private: bool) -> None:
    """Create a repository unless it exists, so that a lack of permission shows before the training.

    Raises:
        ConfigError: the Hub refuses, or cannot be reached.
    """
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.auth_check(repository, write=True)  # create_repo succeeds for anyone who may read an existing one
    except Exception as error:
        raise ConfigError(f"push_to_hub: the Hub does not let us write to {repository}: {first_line(error)}") from None


def published_files(folder: Path) -> list[str]:
    """Return the names of a run's files for the Hub: the LoRA files, the card, and the images that the card shows."""
    card = folder / "README.md"
    shown = sorted(set(SAMPLE.findall(card.read_text(encoding="utf-8")))) if card.exists() else []
    loras = sorted(path.name for path in folder.glob("*.safetensors"))
    return [name for name in ["README.md", *loras, *shown] if (folder / name).is_file()]


def upload(folder: Path, repository: str) -> str:
    """Upload a run's `published_files` and return the address.

    Raises:
        UploadError: the Hub cannot be reached, or refuses.
    """
    api = huggingface_hub.HfApi()
    files = published_files(folder)
    try:
        api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=files, commit_message="Upload a LoRA")
    except Exception as error:  # of many kinds
        raise UploadError(f"could not upload to {repository}: {first_line(error)}") from error
    return f"{huggingface_hub.constants.ENDPOINT}/{repository}"


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Upload what a finished training left to the Hub.")
    parser.add_argument("run_dir", type=Path, help="the output_dir of a training")
    parser.add_argument("repository", help="user/name")
    parser.add_argument("--public", action="store_true", help="if it has to be created, make it public")
    arguments = parser.parse_args(argv)
    try:
        if not any(name.endswith(".safetensors") for name in published_files(arguments.run_dir)):
            raise ConfigError(f"{arguments.run_dir} has no LoRA file: is it the output_dir of a finished training?")
        repository = check_hub(arguments.repository, "repository")
        claim_repository(repository, private=not arguments.public)
        print(f"uploaded to {upload(arguments.run_dir, repository)}")
        return 0
    except (ConfigError, UploadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ConfigError.exit_code


if __name__ == "__main__":
    sys.exit(main())
