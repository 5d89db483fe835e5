"""Many jobs at once, on machines that share a folder: each a part of the pictures, then one that finds all done."""

import multiprocessing

import pytest
from safetensors.torch import load_file

from preprocess.jobs.processes import Team
from preprocess.jobs.shard import Part, held
from sdxl_lora.errors import ConfigError
from sdxl_lora.run.status import read_status
from tests.helpers.configs import flat_preprocess_config, flat_train_config
from tests.helpers.launch import Launched, launch
from tests.helpers.preparing import content, preprocess, report_of


def test_parts_share_out_all():
    parts = [Part.parse(f"{number}/3") for number in (1, 2, 3)]
    assert sorted(item for part in parts for item in part.share(list(range(10)))) == list(range(10))


@pytest.mark.parametrize("part", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2"])
def test_what_is_no_part_is_refused(part):
    with pytest.raises(ConfigError, match="it must be a part of the whole, such as 1/4"):
        flat_preprocess_config("raw", "out", part=part)
    with pytest.raises(ConfigError, match="it must be a part of the whole, such as 1/4"):
        flat_train_config("run", train_data_dir="data", cache_part=part)


def test_jobs_prepare_their_parts_and_one_run_puts_them_together(nine_images, tmp_path, tiny_florence2):
    flags = ["--resolution", "64", "--bucket_step", "16", "--trigger_word", "sks", "--num_workers", "0"]
    flags += ["--caption_model", tiny_florence2, "--caption_max_new_tokens", "8"]
    for number in (2, 1, 3):
        assert preprocess(nine_images, tmp_path / "parts", *flags, "--part", f"{number}/3") == 0
        assert not (tmp_path / "parts" / "metadata.jsonl").exists()
    assert preprocess(nine_images, tmp_path / "parts", *flags) == 0
    assert preprocess(nine_images, tmp_path / "one", *flags) == 0
    assert content(tmp_path / "parts") == content(tmp_path / "one")
    counts, alone = (report_of(tmp_path / name)["counts"] for name in ("parts", "one"))
    assert (counts["new_crops"], counts["new_captions"]) == (0, 0) and alone["new_captions"] > 0


def test_a_part_has_one_job_and_the_whole_waits_for_it(nine_images, tmp_path, capsys):
    with held(tmp_path / "out", Part(2, 3), Team()):
        assert preprocess(nine_images, tmp_path / "out", "--part", "2/3") == 2
        assert "at work" in capsys.readouterr().err
        assert preprocess(nine_images, tmp_path / "out", "--part", "1/3") == 0
        assert preprocess(nine_images, tmp_path / "out") == 2
        assert "a job is still working on part 2/3" in capsys.readouterr().err
    assert preprocess(nine_images, tmp_path / "out") == 0


def test_jobs_fill_one_cache_at_once_and_a_training_reads_it(train_config, tmp_path):
    """Two jobs of one process and one of two, all on one folder; the third does what the others do too."""
    settings = {"random_flip": True, "max_train_steps": 2}
    jobs = {
        part: Launched(train_config(**settings, cache_part=part), tmp_path / f"log {part[0]}{part[2]}", world_size)
        for part, world_size in (("1/2", 1), ("2/2", 1), ("1/1", 2))
    }
    for part, job in jobs.items():
        assert set(job.wait()) == {0}, job.printed()
        status = read_status(tmp_path / "run" / f"cache-part-{part.replace('/', '-of-')}")
        assert (status["state"], status["reason"]) == ("stopped", f"part {part} of the caches is filled")
    filled = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(filled) == 4 * 2 + 4 and all(load_file(path) for path in filled)
    left = {path for path in (tmp_path / "cache").rglob("*") if path.is_file()} - {tmp_path / "cache" / "memo.json"}
    assert left == set(filled), "nothing half written is left"
    codes, printed = launch(train_config(**settings), tmp_path / "log")
    assert codes == [0], printed
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == filled


def write_often(folder, number):
    import torch

    from sdxl_lora.cache.records import write_record

    for _ in range(200):
        write_record(folder / "record.safetensors", {"mean": torch.full((64,), float(number))})


def test_processes_that_write_one_record_at_once_leave_a_whole_one(tmp_path):
    processes = [multiprocessing.get_context("fork").Process(target=write_often, args=(tmp_path, n)) for n in range(4)]
    for process in processes:
        process.start()
    whole = 0
    while any(process.is_alive() for process in processes):
        if (tmp_path / "record.safetensors").exists():
            values = load_file(tmp_path / "record.safetensors")["mean"]
            assert values.unique().numel() == 1
            whole += 1
    assert whole and [path.name for path in tmp_path.iterdir()] == ["record.safetensors"]
    assert all(process.exitcode == 0 for process in processes)
