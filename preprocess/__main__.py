"""The command of preprocess: parse the flags, build the dataset, end every failure in one message and an exit code.

Torch, transformers and datasets are imported only when needed, so that --help and typos are answered at once.
"""

import errno
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sdxl_lora.config.cli import load_config
from sdxl_lora.config.fields import flat_values
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.errors import ConfigError, DataError, DiskError
from sdxl_lora.operating_system import print_any_name
from sdxl_lora.packages import explain_failed_imports

if TYPE_CHECKING:
    from preprocess.output.rows import Built

STOPPED = "stopped: what is done is kept, and the same command continues from there"
OUT_OF_MEMORY = 7  # the exit code; see sdxl_lora/errors.py


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code; see sdxl_lora/errors.py."""
    print_any_name()
    explain_failed_imports()
    config = load_config(PreprocessConfig, sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, terminated)
    try:
        run(config)
    except (ConfigError, DataError, DiskError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        print(f"error: {disk_message(error, config.output_dir)}", file=sys.stderr)
        return DiskError.exit_code
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        print(f"error: the captioner does not fit on the GPU even with one image: {error}", file=sys.stderr)
        return OUT_OF_MEMORY
    return 0


def terminated(number, frame):
    print(STOPPED, file=sys.stderr)
    raise SystemExit(143)


def disk_message(error: OSError, output_dir: str) -> str:
    existing = next(folder for folder in [Path(output_dir), *Path(output_dir).absolute().parents] if folder.exists())
    free = shutil.disk_usage(existing).free
    return (
        f"cannot write {error.filename or output_dir}: {error.strerror}; {free / 1e6:.1f} MB are free there. "
        "What is done is kept, and the same command continues from there"
    )


def run(config: PreprocessConfig) -> None:
    """Prepare the dataset or one part of it, or print the plan of a dry run."""
    from preprocess.dataset import build
    from preprocess.dry_run import plan_lines
    from preprocess.images.crop import note_on_square
    from preprocess.images.masks import check_remover
    from preprocess.jobs.processes import Team
    from preprocess.jobs.shard import Part, check_all_done, held
    from preprocess.jobs.state import locked
    from preprocess.output.report import console_lines
    from preprocess.sources.folders import check_folders, find_all
    from sdxl_lora.publish.hub import check_hub

    input_dir, output = Path(config.input_dir), Path(config.output_dir)
    class_images = Path(config.images.class_images) if config.images.class_images else None
    check_folders([folder for folder in (input_dir, class_images) if folder], output)
    if (note := note_on_square(config.sizes)) and int(os.environ.get("RANK", 0)) == 0:
        print(f"warning: {note}", file=sys.stderr)
    found = find_all(input_dir, class_images, masks=config.images.masks == "folder", leave_out=config.job.leave_out)
    if config.images.masks == "remover":
        check_remover()
    if config.job.dry_run:
        print(plan_lines(found, config))
        return
    repository = None
    if config.output.push_to_hub:
        repository = check_hub(config.output.hub_dataset_id or output.resolve().name, "hub_dataset_id")
    team, part, report = Team(), Part.parse(config.job.part), {}
    if team.rank == 0 and not part:
        check_all_done(output)
    with held(output, part, team) if part else locked(output, team):
        built = build(found, config, team, part, lambda built: report.update(write_report(built, config)))
        if team.rank == 0 and part:
            done = f"{built.new_crops} crops and {built.new_captions} captions are new"
            print(f"part {config.job.part} is done: {done}; run the same command without --part to join the parts")
        elif team.rank == 0:
            hand_out(config, repository)
    if team.rank == 0 and not part:
        print(console_lines(report, config.output_dir, config.job.train_batch_size))
    team.close()


def write_report(built: "Built", config: PreprocessConfig) -> dict:
    """Write the report as HTML and as JSON, and return it."""
    from preprocess.captions.token_count import load_tokenizer
    from preprocess.jobs.state import write_whole
    from preprocess.output.html_report import page
    from preprocess.output.report import report_of, to_json

    output = Path(config.output_dir)
    report = report_of(built, flat_values(config), *load_tokenizer(config.captions.tokenizer))
    write_whole(output / "preprocess_report.json", to_json(report))
    write_whole(output / "report.html", page(report, output, {s.name: s.path for s in built.found.sources}))
    return report


def hand_out(config: PreprocessConfig, repository: str | None) -> None:
    """Export the published dataset as parquet and upload it to the Hub, where the settings ask for it."""
    from preprocess.output.export import upload, write_parquet

    folder = Path(config.output_dir)
    if config.output.format == "parquet":
        write_parquet(folder, config.output.max_shard_mb * 10**6)
        folder = folder / "parquet"
    if repository:
        print(upload(folder, repository, config.output.hub_private))


if __name__ == "__main__":
    sys.exit(main())
