"""Measure images per second of one process and of several here, and check the formula of scaling_model.py against them.

    python -m benchmarks.scaling --rounds 5

On a machine with several GPUs: one process on each, up to all of them. Without: one and two processes, one thread each.
Two processes not only communicate but also contend for memory and caches; so two independent trainings are measured
too: the difference between the slower of these and two that train together is communication. The formula predicts it
from an all-reduce of the same bytes by itself. Small and large gradients in turns, medians of all rounds. On a machine
with other work, --quantile 0.2 takes the least disturbed steps in place of medians. Writes scaling.json, scaling.md and
scaling.png into --output_dir.
"""

import argparse
import json
import multiprocessing
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.scaling_model import CLUSTERS, SIZES, Cluster
from benchmarks.scaling_report import plot, table
from sdxl_lora.config.fields import from_flat
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.run.events import read_events

assert sys.platform != "win32", "its processes come from a fork server, which Windows lacks"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train_sdxl_lora"])
KINDS = ("one", "apart", "together")
STEPS_LEFT_OUT = 5  # first steps, which warm up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 512])
    parser.add_argument("--base", default="examples/shapes/base", help="any base; one of your own on GPUs")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--quantile", type=float, default=0.5, help="of the steps' seconds; 0.5 is the median")
    parser.add_argument("--processes", type=int, default=None, help="default: the GPUs, or 2 without one")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    args.processes = args.processes or max(2, gpus())
    with tempfile.TemporaryDirectory() as folder:
        for measured in measure(args, Path(folder)):
            write_results(args, measured)


def write_results(args, measured: list[dict]) -> None:
    result = {
        "command": " ".join(["python -m benchmarks.scaling", *sys.argv[1:]]),
        "machine": f"{gpus()} GPUs, {os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "measured": measured,
        "on_paper": [on_paper(cluster) for cluster in CLUSTERS],
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.output_dir / "scaling.md").write_text(table(result))
    plot(result, args.output_dir / "scaling.png")
    print(table(result))


def gpus() -> int:
    import torch

    return torch.cuda.device_count()


def measure(args, folder: Path) -> Iterator[list[dict]]:
    """Yield after each round, for each rank of the LoRA, the medians so far and the formula's prediction."""
    write_images(folder / "pictures", 4 * args.batch * args.processes, args.resolution)
    n, parameters = args.processes, {}
    seconds: dict[tuple[int, str], list[float]] = {(rank, kind): [] for rank in args.ranks for kind in KINDS}
    allreduce: dict[int, list[float]] = {rank: [] for rank in args.ranks}
    for round_number in range(1, args.rounds + 1):
        for rank in args.ranks:
            for kind, runs, world_size in (("one", 1, 1), ("apart", n, 1), ("together", 1, n)):
                lasted, parameters[rank] = train(args, folder, rank, runs, world_size)
                seconds[rank, kind] += lasted
            allreduce[rank] += time_allreduce(4 * parameters[rank], n)
        print(f"round {round_number} of {args.rounds}", flush=True)
        yield [
            about(
                rank,
                round_number,
                args.batch,
                n,
                4 * parameters[rank],
                *(
                    float(np.quantile(values, args.quantile))
                    for values in map(
                        np.asarray,
                        (
                            allreduce[rank],
                            *(seconds[rank, kind] for kind in KINDS),
                            slowest_of(n, seconds[rank, "apart"]),
                        ),
                    )
                ),
            )
            for rank in args.ranks
            for slowest in [slowest_of(n, seconds[rank, "apart"])]
        ]


def slowest_of(n: int, seconds: list[float]) -> np.ndarray:
    """Return samples of the slowest of n processes that each take one of these times, by 10,000 draws."""
    return np.random.default_rng(0).choice(seconds, (10_000, n)).max(axis=1)


def about(rank, rounds, batch, n, gradient_bytes, allreduce, one, apart, together, slowest) -> dict:
    link = 2 * (n - 1) / n * gradient_bytes / allreduce
    # On a CPU the backward pass and gloo share a core: no communication is hidden.
    overlap = Cluster.overlap if gpus() else 0.0
    cluster = Cluster("here", slowest, batch, n, link, link, latency=0, jitter=0, overlap=overlap,
                      gradients=gradient_bytes)  # fmt: skip
    predicted = cluster.step(n)
    return {
        "rank": rank, "rounds": rounds, "processes": n, "gradient_bytes": gradient_bytes,
        "step_seconds_one": one, "step_seconds_apart": apart, "step_seconds_together": together,
        "slowest_apart": slowest, "allreduce_seconds": allreduce, "predicted_step_seconds": predicted,
        "measured_over_predicted": together / predicted,
        "images_per_second_one": batch / one, "images_per_second_together": n * batch / together,
        "efficiency": one / together, "efficiency_beside_contention": apart / together,
    }  # fmt: skip


def train(args, folder: Path, rank: int, runs: int, world_size: int) -> tuple[list[float], int]:
    """Run `runs` trainings of `world_size` processes; return seconds of steps after the warm-up, and parameters."""
    processes, outputs = [], []
    for run in range(runs):
        outputs.append(Path(tempfile.mkdtemp(dir=folder)))
        config = from_flat(
            TrainConfig,
            {
                "output_dir": str(outputs[-1]),
                "pretrained_model_name_or_path": args.base,
                "train_data_dir": str(folder / "pictures"),
                "resolution": args.resolution,
                "cache_dir": str(folder / "cache"),
                "rank": rank,
                "target_modules": "attention",
                "train_batch_size": args.batch,
                "max_train_steps": args.steps,
                "mixed_precision": "bf16" if gpus() else "no",
                "report_to": "none",
                "checkpointing_steps": None,
            },
        )
        port = free_port()
        processes += [
            CONTEXT.Process(target=train_in_process, args=(config, environment(place, world_size, port, run)))
            for place in range(world_size)
        ]
    run_all(processes)
    events = [list(read_events(output / "events.jsonl")) for output in outputs]
    steps = [[event for event in of_run if event["event"] == "step"] for of_run in events]
    lasted = [
        (after["time"] - before["time"]) / (after["step"] - before["step"])
        for of_run in steps
        for before, after in pairwise(of_run)
        if before["step"] >= STEPS_LEFT_OUT
    ]
    return lasted, next(event["parameters"] for event in events[0] if event["event"] == "started")


def train_in_process(config: TrainConfig, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(Path(config.output_dir) / f"stderr-{variables['RANK']}", os.O_WRONLY | os.O_CREAT), 2)
    import torch

    import train_sdxl_lora

    torch.set_num_threads(1)
    os._exit(train_sdxl_lora.main(config))


def environment(place: int, world_size: int, port: str, device: int) -> dict[str, str]:
    """Return the variables that a launcher sets for a process; parallel trainings get a GPU each."""
    variables = {"RANK": str(place), "LOCAL_RANK": str(place), "WORLD_SIZE": str(world_size), "MASTER_PORT": port}
    variables |= {"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    if not gpus():
        return {**variables, "ACCELERATE_USE_CPU": "true"}
    return variables if world_size > 1 else {**variables, "CUDA_VISIBLE_DEVICES": str(device)}


def time_allreduce(size: int, world_size: int) -> list[float]:
    results, port = CONTEXT.Queue(), free_port()
    run_all(
        [CONTEXT.Process(target=allreduce_in_process, args=(size, environment(place, world_size, port, 0), results))
         for place in range(world_size)]
    )  # fmt: skip
    return results.get()


def allreduce_in_process(size: int, variables: dict[str, str], results) -> None:
    os.environ.update(variables)
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("nccl" if gpus() else "gloo")
    device = torch.device("cuda", int(variables["LOCAL_RANK"])) if gpus() else torch.device("cpu")
    tensor, lasted = torch.ones(size // 4, device=device), []
    for _ in range(25):
        torch.distributed.barrier()
        since = time.perf_counter()
        torch.distributed.all_reduce(tensor)
        tensor[0].item()  # waits for a GPU
        lasted.append(time.perf_counter() - since)
    if variables["RANK"] == "0":
        results.put(lasted[5:])
    torch.distributed.destroy_process_group()


def run_all(processes: list) -> None:
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"processes ended with {[process.exitcode for process in processes]}")


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def write_images(folder: Path, number: int, side: int) -> None:
    folder.mkdir()
    for index in range(number):
        pixels = np.random.default_rng(index).integers(0, 255, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("noise")


def on_paper(cluster: Cluster) -> dict:
    rows = {str(n): [round(cluster.images_per_second(n), 1), round(cluster.efficiency(n), 3)] for n in SIZES}
    return {"cluster": cluster.name, "images_per_second_and_efficiency": rows}


if __name__ == "__main__":
    main()
