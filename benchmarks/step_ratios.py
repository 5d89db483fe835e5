"""Measure what each part of a step is worth: the whole step with and without it, in turn, in one process, same weights.

    python -m benchmarks.step_ratios --size toy
    python -m benchmarks.step_ratios --size sdxl --precision bf16

Each way is compared with the trainer's own in time, in memory beyond the weights, and in the loss and gradient of its
first step (their distance from PEFT's layers in the same precision). Weights are random and the batch is fixed:
loading, collating and logging are left to benchmarks/train_speed.py. Writes <name>.json and <name>.md into
--output_dir, with --profile also a step's time by kernel.
"""

import argparse
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch._dynamo
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn

from benchmarks.hardware import measured_peaks, step_flops
from benchmarks.sizes import RESOLUTION, UNETS, VAES
from benchmarks.step_ratios_report import REFERENCE, distance, profile_steps, table
from sdxl_lora.diffusion.objective import noise_prediction_loss
from sdxl_lora.lora.inject import add_lora
from sdxl_lora.lora.state import adapter_parameters
from sdxl_lora.optimizers.optimizers import make_optimizer
from sdxl_lora.performance.compute import checkpoint_blocks, compile_blocks, without_autocast
from sdxl_lora.performance.cuda_graphs import RecordedMicroStep
from sdxl_lora.performance.frozen_layers import use_memory_saving_layers
from sdxl_lora.performance.fused_lora import fuse_lora
from sdxl_lora.performance.memory_budget import OUTER_BLOCKS
from sdxl_lora.performance.quantization import KINDS, quantize_linears

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BLOCKS = ("BasicTransformerBlock",)


@dataclass(frozen=True)
class Way:
    """Settings of a step's computation. The defaults are the trainer's."""

    fuses: bool = True
    keeps_less: bool = True  # for the backward pass
    casts: bool = False  # under autocast
    optimizer: str = "adamw"
    compiles: tuple[str, ...] = ()  # kinds of blocks
    graphed: bool = False  # forward and backward recorded once as a CUDA graph
    recomputes: str = "none"
    base: str | None = None  # precision of the frozen base, if another
    looks: bool = False  # the host reads the loss in each step
    encodes: bool = False  # the VAE reads each image anew, in float32
    channels_last: bool = False


WAYS = {
    "ours": Way(),
    "PEFT's layers": Way(fuses=False, keeps_less=False, casts=True),
    "keeping what torch keeps": Way(keeps_less=False),
    "under autocast": Way(casts=True),
    "foreach AdamW": Way(optimizer="foreach"),
    "reading the loss in each step": Way(looks=True),
    "encoding pictures in each step": Way(encodes=True),
    "channels last": Way(channels_last=True),
    "compiled": Way(compiles=BLOCKS),
    "CUDA graph": Way(graphed=True),
    "CUDA graph, compiled": Way(graphed=True, compiles=BLOCKS),
    "compiled, resnets too": Way(compiles=(*BLOCKS, "ResnetBlock2D")),
    "CUDA graph, compiled, resnets too": Way(graphed=True, compiles=(*BLOCKS, "ResnetBlock2D")),
    "outer blocks recomputed": Way(recomputes="outer"),
    "all blocks recomputed": Way(recomputes="all"),
    **{f"base in {kind}": Way(base=kind) for kind in KINDS},
    "AdamW in 8 bits": Way(optimizer="adamw8bit"),
}


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(RESOLUTION), default="toy")
    parser.add_argument("--precision", choices=sorted(DTYPES), default="no")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--resolution", type=int, help="default: 256 for toy, 1024 for sdxl")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", nargs="*", default=[], choices=list(WAYS), help="list the kernels of these ways")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/train_speed"), help="for counts of FLOPs")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--name", default="step_ratios")
    args = parser.parse_args(argv)
    args.resolution = args.resolution or RESOLUTION[args.size]
    return args


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.recompile_limit = 64  # resnets have many sizes
    peaks = measured_peaks(args.precision, args.threads)
    bench = Bench(args, device)
    names = [name for name in args.ways if name != REFERENCE]
    steps, first, failures = {}, {}, {}
    for name in [REFERENCE, *names]:
        try:
            step = bench.prepare(WAYS[name])
            first[name] = bench.first_step(step)
            steps[name] = step
        except Exception as error:  # reported with its reason
            failures[name] = str(error).strip().splitlines()[0][:300]
            print(name, "failed:", error, flush=True)
        if name in first:
            print(name, {key: value for key, value in first[name].items() if key != "gradient"}, flush=True)
    rounds: dict[str, list] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            rounds[name].append(bench.seconds(step))
            print(name, f"{rounds[name][-1] * 1e3:.1f} ms/step", flush=True)
    flops = step_flops(UNETS[args.size], args.rank, args.batch, args.resolution, remember_in=args.work_dir)
    seconds = {name: median(of_rounds) for name, of_rounds in rounds.items()}
    result = {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "machine": f"{torch.cuda.get_device_name() if device.type == 'cuda' else platform.machine()}, "
        f"torch {torch.__version__}",
        "peak": peaks,
        "flops": flops["step"],
        "ways": {
            name: {
                "seconds": seconds[name],
                "rounds": rounds[name],
                "first_step_seconds": first[name]["seconds"],
                "gib_beyond_weights": first[name]["bytes"] / 2**30,
                **distance(first[name], first[REFERENCE]),
            }
            for name in steps
        },
        "failures": failures,
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / f"{args.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.output_dir / f"{args.name}.md").write_text(table(args, result))
    print(table(args, result))
    for name in filter(steps.__contains__, args.profile):
        file = f"{args.name}-{''.join(letter for letter in name if letter.isalnum())}.txt"
        print(name, profile_steps(steps[name], bench.synchronize, args.output_dir / file), flush=True)


class Bench:
    """The base's weights, which all ways share, and one batch."""

    def __init__(self, args, device: torch.device):
        self.args, self.device, self.dtype = args, device, DTYPES[args.precision]
        torch.manual_seed(0)
        with device:
            unet = UNet2DConditionModel(**UNETS[args.size]).to(self.dtype).requires_grad_(False)
            self.vae = AutoencoderKL(**VAES[args.size]).requires_grad_(False).eval()
            self.image = torch.rand(args.batch, 3, args.resolution, args.resolution) * 2 - 1
        self.weights = unet.state_dict()
        self.schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        self.batch = self._batch(unet.config)

    def _batch(self, config) -> dict[str, torch.Tensor]:
        generator, batch, side = torch.Generator().manual_seed(1), self.args.batch, self.args.resolution // 8
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim

        def normal(*shape):
            tensor = torch.randn(batch, *shape, generator=generator)
            return tensor.pin_memory() if self.device.type == "cuda" else tensor

        return {
            "latents": normal(config.in_channels, side, side),
            "noise": normal(config.in_channels, side, side),
            "prompt_embeds": normal(77, config.cross_attention_dim).to(self.dtype),
            "pooled_embeds": normal(pooled).to(self.dtype),
            "time_ids": torch.tensor([[side * 8.0, side * 8.0, 0, 0, side * 8.0, side * 8.0]] * batch),
            "timesteps": torch.arange(batch) * 200 % 1000 + 100,
        }

    def prepare(self, way: Way) -> "Step":
        """Return a step on a UNet that shares the base's weights, with the same adapter for all ways."""
        with torch.device("meta"):
            unet = UNet2DConditionModel(**UNETS[self.args.size])
        unet.load_state_dict(self.weights, assign=True)
        unet.requires_grad_(False)
        if way.base:
            quantize_linears(unet, way.base, self.device)
        add_lora(unet, self.args.rank, self.args.rank)
        generator = torch.Generator().manual_seed(2)
        parameters = list(adapter_parameters(unet).values())
        with torch.no_grad():
            for parameter in parameters:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
        unet.to(self.device).train()
        if way.channels_last:
            unet.to(memory_format=torch.channels_last)
        if way.keeps_less:
            use_memory_saving_layers(unet, bool(way.compiles))
        if way.fuses:
            fuse_lora(unet, bool(way.compiles))
        if not way.casts and self.dtype != torch.float32:
            without_autocast(unet, self.dtype)
        if way.recomputes != "none":
            checkpoint_blocks(unet, OUTER_BLOCKS if way.recomputes == "outer" else ())
        if way.compiles:
            unet._repeated_blocks = list(way.compiles)
            compile_blocks(unet, print)
        name, foreach = (
            ("adamw", {"fused": False, "foreach": True}) if way.optimizer == "foreach" else (way.optimizer, {})
        )
        return Step(self, way, unet, parameters, make_optimizer(name, parameters, 1e-4, arguments=foreach))

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def first_step(self, step: "Step") -> dict:
        """Return its loss, gradient, seconds (compiling included) and the peak bytes beyond those allocated before."""
        self.synchronize()
        before = self._reset_peak()
        began = time.perf_counter()
        loss, gradient = step(keep_gradient=True)
        self.synchronize()
        spent = time.perf_counter() - began
        step(), step()  # the second has the peak, with the optimizer's state; the third warms up
        return {
            "loss": loss.item(),
            "gradient": gradient.cpu(),
            "seconds": spent,
            "bytes": torch.cuda.max_memory_allocated() - before if self.device.type == "cuda" else 0,
        }

    def _reset_peak(self) -> int:
        if self.device.type != "cuda":
            return 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def seconds(self, step: "Step") -> float:
        """Return the mean seconds of a step over a round."""
        self.synchronize()
        began = time.perf_counter()
        for _ in range(self.args.steps):
            step()
        self.synchronize()
        return (time.perf_counter() - began) / self.args.steps


class Step:
    """One optimizer step."""

    def __init__(self, bench: Bench, way: Way, unet: nn.Module, parameters: list, optimizer: torch.optim.Optimizer):
        self.bench, self.way, self.unet, self.parameters, self.optimizer = bench, way, unet, parameters, optimizer
        self.micro_step = self.forward_and_backward
        if way.graphed:
            self.micro_step = RecordedMicroStep(self.forward_and_backward, parameters, print)

    def forward_and_backward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        bench = self.bench
        with torch.autocast(bench.device.type, bench.dtype, enabled=bench.dtype != torch.float32):
            losses = noise_prediction_loss(
                self.unet, bench.schedule, batch["latents"], batch, batch["noise"], batch["timesteps"]
            )
        loss = losses.mean()
        loss.backward()
        return loss

    def __call__(self, keep_gradient: bool = False):
        bench = self.bench
        batch = {name: tensor.to(bench.device, non_blocking=True) for name, tensor in bench.batch.items()}
        if self.way.encodes:
            with torch.no_grad():
                bench.vae.encode(bench.image)
        loss = self.micro_step(batch)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        gradient = None
        if keep_gradient:
            gradient = torch.cat([parameter.grad.detach().float().flatten() for parameter in self.parameters])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.way.graphed)
        if self.way.looks:
            loss.item()
        return (loss.detach().clone(), gradient) if keep_gradient else None  # a graph's next replay writes over it


if __name__ == "__main__":
    main()
