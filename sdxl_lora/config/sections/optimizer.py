"""Settings of the learning rates and the optimizer."""

import difflib
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Gt, Le, Lt

from sdxl_lora.config.checks import OPTIMIZERS, PRODIGIES, SCHEDULE_FREE, blocks_problems, keyword_argument
from sdxl_lora.config.fields import BY_CONTENT, FREE, SAME, SET, applies_when
from sdxl_lora.errors import ConfigError

Schedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "rex", "wsd"
]
FOR_TEXT = applies_when(train_text_encoder=SET)
FOR_PRODIGY = applies_when(optimizer=("prodigy",))


@dataclass(frozen=True)
class OptimizerConfig:
    """Learning rate and optimizer."""

    learning_rate: Annotated[float | None, Ge(0), FREE] = 1e-4
    """Peak learning rate. None if the optimizer finds its own: adafactor with relative_step=True."""
    text_encoder_lr: Annotated[float | None, Ge(0), FREE, FOR_TEXT] = None
    """Peak learning rate of the text encoders. Default: learning_rate."""
    text_encoder_2_lr: Annotated[float | None, Ge(0), FREE, FOR_TEXT] = None
    """Peak learning rate of the second text encoder. Default: text_encoder_lr."""
    stop_text_encoder_training: Annotated[float | None, Ge(0), Lt(1), SAME, FOR_TEXT] = None
    """After this share of the steps, 0 to 1, the text encoders are no longer trained."""
    block_lr_factors: Annotated[tuple[str, ...], SAME, applies_when(train_unet=SET)] = ()
    """Learning rate factors for blocks of the UNet, named as in block_ranks, e.g. down=0.5 mid=1 up.1=2."""
    scale_lr: Annotated[bool, FREE] = False
    """Multiply the learning rate by the batch size, the micro-steps and the number of processes."""
    lr_scheduler: Annotated[Schedule, FREE] = "constant"
    """How the learning rate changes over the steps; wsd is constant and falls at the end, rex falls late."""
    lr_warmup_steps: Annotated[int, Ge(0), FREE, applies_when(lr_scheduler=get_args(Schedule)[1:])] = 0
    """Steps over which the learning rate rises from 0 (every schedule but "constant")."""
    lr_num_cycles: Annotated[int, Gt(0), FREE, applies_when(lr_scheduler=("cosine_with_restarts",))] = 1
    """Number of cycles of cosine_with_restarts."""
    lr_power: Annotated[float, Gt(0), FREE, applies_when(lr_scheduler=("polynomial",))] = 1.0
    """Exponent of the polynomial schedule."""
    lr_decay_share: Annotated[float, Gt(0), Le(1), FREE, applies_when(lr_scheduler=("wsd",))] = 0.2
    """Share of the steps over which wsd falls to 0."""
    optimizer: Annotated[str, BY_CONTENT] = "adamw"
    """adamw, adamw8bit, paged_adamw8bit, lion, lion8bit, prodigy, prodigy_plus_schedule_free, adafactor,
    schedule_free_adamw, came, adopt, muon (linear layers only), or a module.Class."""
    use_8bit_adam: Annotated[bool, BY_CONTENT] = False
    """The same as --optimizer adamw8bit."""
    optimizer_args: Annotated[tuple[str, ...], BY_CONTENT] = ()
    """Further arguments of the optimizer, as name=value with Python values, e.g. d_coef=2.0 betas=(0.9,0.99)."""
    lora_plus_ratio: Annotated[float | None, Gt(0), SAME, applies_when(adapter=("lora",))] = None
    """LoRA+: the second matrix of each LoRA learns this many times faster; 16 is usual."""
    adam_beta1: Annotated[float, Ge(0), Lt(1), SAME] = 0.9
    """Decay of the optimizer's first moment."""
    adam_beta2: Annotated[float, Ge(0), Lt(1), SAME] = 0.999
    """Decay of the optimizer's second moment."""
    adam_weight_decay: Annotated[float, Ge(0), SAME] = 1e-2
    """Decoupled weight decay."""
    adam_epsilon: Annotated[float, Gt(0), SAME] = 1e-8
    """Small term that keeps Adam's division finite."""
    ema_decay: Annotated[float | None, Ge(0), Lt(1), SAME] = None
    """Draw samples with, and publish, a moving average of the weights that keeps this share in each step, e.g.
    0.999."""
    prodigy_beta3: Annotated[float | None, Ge(0), Lt(1), BY_CONTENT, FOR_PRODIGY] = None
    """Decay of Prodigy's estimate of the learning rate. Default: the square root of adam_beta2."""
    prodigy_decouple: Annotated[bool, BY_CONTENT, FOR_PRODIGY] = True
    """Use weight decay as in AdamW."""
    prodigy_use_bias_correction: Annotated[bool, BY_CONTENT, FOR_PRODIGY] = True
    """Use Adam's correction of the first steps in Prodigy."""
    prodigy_safeguard_warmup: Annotated[bool, BY_CONTENT, FOR_PRODIGY] = True
    """Keep Prodigy's estimate from growing too far while the learning rate warms up."""
    max_grad_norm: Annotated[float, Ge(0), FREE] = 1.0
    """Scale gradients down to this norm; 0 for no clipping."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "optimizer", self.optimizer.strip())

    @property
    def name(self) -> str:
        """Name of the optimizer, whichever setting chose it."""
        return "adamw8bit" if self.use_8bit_adam else self.optimizer

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the optimizer's class, beyond Adam's settings."""
        flags = ("beta3", "decouple", "use_bias_correction", "safeguard_warmup")
        own = {flag: getattr(self, f"prodigy_{flag}") for flag in flags} if self.name == "prodigy" else {}
        return own | dict(keyword_argument(text) for text in self.optimizer_args)

    def problems(self) -> list[str]:
        """Return a sentence for each invalid or conflicting setting."""
        problems = blocks_problems("block_lr_factors", self.block_lr_factors, float)
        if self.ema_decay is not None and self.name in SCHEDULE_FREE:
            problems.append(f"ema_decay does not go with {self.name}, which keeps an average of its own")
        if self.optimizer not in OPTIMIZERS and "." not in self.optimizer.strip(" ."):
            near = difflib.get_close_matches(self.optimizer.lower(), OPTIMIZERS, n=1)
            question = f", did you mean {near[0]}?" if near else ""
            known = ", ".join(OPTIMIZERS)
            problems.append(f"optimizer is {self.optimizer!r}, it must be one of {known}, or module.Class{question}")
        if self.use_8bit_adam and self.optimizer not in ("adamw", "adamw8bit"):
            problems.append(f"use_8bit_adam means adamw8bit, but optimizer is {self.optimizer}: leave one of them out")
        if self.name in PRODIGIES:
            problems += self._prodigy_problems()
        return problems + self._argument_problems() + self._own_rate_problems()

    def _own_rate_problems(self) -> list[str]:
        """Return a sentence for each conflict over whether the settings or the optimizer choose the learning rate."""
        finds_its_own = any(re.fullmatch(r"\s*relative_step\s*=\s*True\s*", text) for text in self.optimizer_args)
        if self.learning_rate is not None:
            if self.name == "adafactor" and finds_its_own:
                return ["adafactor with relative_step=True finds the learning rate itself: give --learning_rate None"]
            return []
        problems = []
        if self.name in OPTIMIZERS and not (self.name == "adafactor" and finds_its_own):
            problems.append(
                "learning_rate is None, it must be a number; None is for adafactor with --optimizer_args "
                "relative_step=True, and for a module.Class optimizer that has its own rate"
            )
        of_rate = {
            "lr_scheduler": self.lr_scheduler != "constant",
            "scale_lr": self.scale_lr,
            "lora_plus_ratio": self.lora_plus_ratio is not None,
            "block_lr_factors": bool(self.block_lr_factors),
            "text_encoder_lr": self.text_encoder_lr is not None,
            "text_encoder_2_lr": self.text_encoder_2_lr is not None,
            "stop_text_encoder_training": self.stop_text_encoder_training is not None,
        }
        if given := [name for name, is_given in of_rate.items() if is_given]:
            problems.append(f"{', '.join(given)} changes the learning rate: leave it out with learning_rate None")
        return problems

    def _prodigy_problems(self) -> list[str]:
        problems = []
        if self.lora_plus_ratio is not None:
            problems.append(
                f"lora_plus_ratio does not go with {self.name}, which finds one learning rate for all weights"
            )
        factors = [text.rpartition("=")[2].strip() for text in self.block_lr_factors]
        rates = (self.text_encoder_lr, self.text_encoder_2_lr)
        if any(factor not in ("0", "0.0", "1", "1.0") for factor in factors) or any(
            rate not in (None, 0, self.learning_rate) for rate in rates
        ):
            problems.append(
                f"{self.name} finds one learning rate for all weights: factors may be 0 or 1, other rates 0"
            )
        return problems

    def _argument_problems(self) -> list[str]:
        problems = []
        for text in self.optimizer_args:
            try:
                name, _ = keyword_argument(text)
            except ConfigError as error:
                problems.append(str(error))
                continue
            if name in ("lr", "params"):
                problems.append(f"optimizer_args may not set {name}" + (": use learning_rate" if name == "lr" else ""))
        return problems
