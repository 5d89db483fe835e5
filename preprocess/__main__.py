"""The command: flags in, a dataset out, one clear message and an exit code where that cannot be.

Torch, transformers and datasets come only once there is work for them, so that --help and a typo answer at once.
"""

import dataclasses
import errno
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

from sdxl_lora.config.cli import load_config
from sdxl_lora.config.fields import flat_values, replace_flat
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.errors import ConfigError, DataError, DiskError
from sdxl_lora.operating_system import print_any_name, usable_cpus

STOPPED = "stopped: what is done is kept, and the same command goes on from there"
OUT_OF_MEMORY = 7  # the exit code; see sdxl_lora/errors.py


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code; see sdxl_lora/errors.py."""
    print_any_name()
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
        print(f"error: the captioner does not fit the GPU even with one picture: {error}", file=sys.stderr)
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
        "What is done is kept, and the same command goes on from there"
    )


def run(config: PreprocessConfig) -> None:
    from preprocess.captions.token_count import load_tokenizer
    from preprocess.dataset import build
    from preprocess.dry_run import plan_lines
    from preprocess.images.masks import check_remover
    from preprocess.jobs.processes import Team
    from preprocess.jobs.shard import Part, check_all_done, held
    from preprocess.jobs.state import locked, write_whole
    from preprocess.output.card import dataset_card
    from preprocess.output.export import upload, write_parquet
    from preprocess.output.html_report import page
    from preprocess.output.report import console_lines, report_of, to_json
    from preprocess.sources.folders import check_folders, find_all
    from sdxl_lora.publish.hub import check_hub

    input_dir, output = Path(config.input_dir), Path(config.output_dir)
    class_images = Path(config.images.class_images) if config.images.class_images else None
    check_folders([folder for folder in (input_dir, class_images) if folder], output)
    found = find_all(input_dir, class_images, masks=config.images.masks == "folder")
    if config.images.masks == "remover":
        check_remover()
    if config.job.dry_run:
        print(plan_lines(found, recipe_of(config).sizing, plan_of(config), config.images.max_megapixels))
        return
    repository = None
    if config.output.push_to_hub:
        repository = check_hub(config.output.hub_dataset_id or output.resolve().name, "hub_dataset_id")
    team = Team()
    report = {}

    def write_report(built):
        report.update(report_of(built, flat_values(config), *load_tokenizer(config.captions.tokenizer)))
        write_whole(output / "preprocess_report.json", to_json(report))
        write_whole(output / "report.html", page(report, output, {s.name: s.path for s in found.sources}))

    part = Part.parse(config.job.part)
    if team.rank == 0 and not part:
        check_all_done(output)
    with held(output, part, team) if part else locked(output, team):
        built = build(
            found,
            output,
            recipe_of(config),
            plan_of(config),
            wording_of(config),
            team,
            reader=reader_of(config),
            num_workers=workers_of(config, team.local_world),
            strict=config.job.strict,
            restore_deleted=config.job.restore_deleted,
            part=part,
            card=lambda rows: dataset_card(
                rows, config.trigger_word, output.resolve().name, config.captioner.caption_model
            ),
            on_built=write_report,
        )
        if part:
            if team.rank == 0:
                done = f"{built.new_crops} crops and {built.new_captions} captions are new"
                print(f"part {config.job.part} is done: {done}; without --part the same command puts all together")
            team.close()
            return
        if team.rank == 0 and config.output.format == "parquet":
            write_parquet(output, config.output.max_shard_mb * 10**6)
        if team.rank == 0 and repository:
            print(
                upload(
                    output / "parquet" if config.output.format == "parquet" else output,
                    repository,
                    config.output.hub_private,
                )
            )
    if team.rank == 0:
        print(console_lines(report, config.output_dir, config.job.train_batch_size))
    team.close()


def workers_of(config: PreprocessConfig, processes: int) -> int:
    """Worker processes for each of the `processes` on this machine."""
    if config.job.num_workers is not None:
        return config.job.num_workers
    return min(8, max(1, usable_cpus() // processes))


def recipe_of(config: PreprocessConfig):
    from preprocess.images.crop import Sizing
    from preprocess.images.prepare import Recipe

    sizing = Sizing(
        resolution=config.sizes.resolution,
        buckets=config.sizes.buckets == "on",
        bucket_step=config.sizes.bucket_step,
        max_aspect=config.sizes.max_aspect,
        min_side=config.sizes.min_bucket_side or config.sizes.resolution // 2,
        no_upscale=config.sizes.no_upscale,
        enlarge_small=config.sizes.enlarge_small,
    )
    return Recipe(
        sizing=sizing,
        crop=config.images.crop,
        crops_per_picture=config.images.crops_per_picture,
        seed=config.images.seed,
        background=config.images.background,
        image_format=config.images.image_format,
        max_megapixels=config.images.max_megapixels,
        masks=config.images.masks,
    )


def plan_of(config: PreprocessConfig, may_be_empty: bool = False):
    from preprocess.captions.caption_all import CaptionPlan
    from preprocess.captions.captioner import CaptionerOptions, captioner, check_captioner, content_name

    plan = CaptionPlan(
        fallback=config.captions.fallback_caption,
        clean=config.captions.clean_captions,
        recaption=config.captions.recaption,
    )
    plan = dataclasses.replace(plan, may_be_empty=may_be_empty)
    if config.captioner.caption_model == "none":
        return plan
    options = CaptionerOptions(
        model=config.captioner.caption_model,
        task=config.captioner.caption_task,
        prompt=config.captioner.caption_prompt,
        num_beams=config.captioner.caption_num_beams,
        max_new_tokens=config.captioner.caption_max_new_tokens,
        dtype=config.captioner.caption_dtype,
        attention=config.captioner.caption_attention,
    )
    return dataclasses.replace(
        plan,
        name=repr(options),
        content=partial(content_name, options),
        max_new_tokens=options.max_new_tokens,
        load=partial(captioner, options, config.captioner.caption_batch_size),
        check=partial(check_captioner, options),
    )


def reader_of(config: PreprocessConfig):
    """Florence-2 at its task of reading, with --ocr."""
    if not config.captioner.ocr:
        return None
    return plan_of(replace_flat(config, caption_task="<OCR>", caption_prompt=None), may_be_empty=True)


def wording_of(config: PreprocessConfig):
    from preprocess.captions.caption_text import Wording

    return Wording(config.trigger_word, config.captions.caption_prefix, config.captions.caption_suffix)


if __name__ == "__main__":
    sys.exit(main())
