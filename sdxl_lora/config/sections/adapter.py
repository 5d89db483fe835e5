"""Settings of the LoRA: kind, size, layers and initialization."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from sdxl_lora.config.checks import blocks_problems
from sdxl_lora.config.fields import BY_CONTENT, PATH, SAME, SET, applies_when

AUTO, DEFAULT_TARGETS = "auto", "attention+ff"

FOR_LORA = applies_when(adapter=("lora",))


@dataclass(frozen=True)
class AdapterConfig:
    """LoRA."""

    rank: Annotated[int, Gt(0), SAME] = 16
    """Rank of the LoRA matrices."""
    lora_alpha: Annotated[float | None, Gt(0), SAME] = None
    """The LoRA is scaled by alpha / rank. Default: alpha = rank."""
    lora_dropout: Annotated[float, Ge(0), Lt(1), SAME, FOR_LORA] = 0.0
    """Share of a LoRA layer's inputs that is set to zero during training."""
    rank_dropout: Annotated[float, Ge(0), Lt(1), SAME] = 0.0
    """Share of a LoRA layer's ranks that is set to zero during training, chosen anew for each image; for LoHa and LoKr,
    share of the rows."""
    module_dropout: Annotated[float, Ge(0), Lt(1), SAME] = 0.0
    """Share of the layers whose adapter is switched off, chosen anew in every forward pass."""
    init_lora_weights: Annotated[str, SAME, FOR_LORA] = "kaiming"
    """How the LoRA starts. kaiming, gaussian and orthogonal: without changing the base. pissa, pissa_niter_4 (quicker
    to compute) and olora: from the main directions of the base's weights, which learn faster. The file then holds the
    change to the original base at twice the rank: exact if the base is in float32, otherwise up to its rounding."""
    init_lora: Annotated[str | None, PATH, BY_CONTENT] = None
    """Continue training this LoRA: a file in any layout, or a PEFT folder. Its modules, ranks and alphas replace rank,
    lora_alpha and target_modules."""
    adapter: Annotated[Literal["lora", "loha", "lokr"], SAME] = "lora"
    """Kind of adapter. ComfyUI, A1111, Forge and InvokeAI get a LoHa or LoKr complete; diffusers gets the nearest
    LoRA."""
    lokr_factor: Annotated[int | None, Gt(0), SAME, applies_when(adapter=("lokr",))] = None
    """Approximate size of LoKr's first factors, e.g. 8. Small ones leave more to the second factors, so more weights
    are trained. Default: as close to the square root of a layer's size as possible, which gives the smallest files."""
    use_dora: Annotated[bool, SAME, FOR_LORA] = False
    """DoRA: a LoRA that also trains magnitudes. Complete in the diffusers file; the other file holds the nearest
    LoRA."""
    use_rslora: Annotated[bool, SAME, FOR_LORA] = False
    """Scale by alpha / sqrt(rank) instead, so that high ranks keep learning."""
    target_modules: Annotated[str, SAME] = AUTO
    """UNet modules that get a LoRA: attention, attention+ff, all-linear, all-linear+conv, or a regular expression.
    auto: when resuming, the same as before; otherwise attention+ff, the attention and feed-forward layers."""
    block_ranks: Annotated[tuple[str, ...], SAME, applies_when(train_unet=SET)] = ()
    """Different ranks for blocks of the UNet, e.g. down=4 up.0=32 up.0.2=0. 0 leaves a block out; alpha / rank stays
    the same. A block is down, mid, up, a level such as down.1, or one of its blocks such as up.0.2; the longest
    matching name applies."""
    train_text_encoder: Annotated[bool, SAME] = False
    """Also train a LoRA on both text encoders. Captions are then encoded again in every step."""
    train_unet: Annotated[bool, BY_CONTENT, applies_when(train_text_encoder=SET)] = True
    """Train a LoRA on the UNet. If off, only the text encoders are trained."""

    @property
    def targets(self) -> str:
        """The target modules, also while no run has settled `auto`."""
        return DEFAULT_TARGETS if self.target_modules == AUTO else self.target_modules

    @property
    def has_dropout(self) -> bool:
        return bool(self.lora_dropout or self.rank_dropout or self.module_dropout)

    @property
    def changes_the_base(self) -> bool:
        """Return whether the LoRA starts as a part of the base's weights, which is subtracted from them."""
        return self.init_lora_weights.startswith(("pissa", "olora"))

    def problems(self) -> list[str]:
        """Return a sentence for each invalid or conflicting setting."""
        problems = blocks_problems("block_ranks", self.block_ranks, int)
        starts = "kaiming, gaussian, orthogonal, pissa, pissa_niter_<number> or olora"
        if not re.fullmatch(r"kaiming|gaussian|orthogonal|pissa(_niter_[1-9]\d*)?|olora", self.init_lora_weights):
            problems.append(f"init_lora_weights is {self.init_lora_weights!r}, it must be {starts}")
        of_lora = {
            "lora_dropout (use rank_dropout)": self.lora_dropout > 0,
            "init_lora_weights": self.init_lora_weights != "kaiming",
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
        }
        if self.adapter != "lora" and any(of_lora.values()):
            names = ", ".join(name for name, given in of_lora.items() if given)
            problems.append(f"{names} belong to adapter lora: leave them out with {self.adapter}")
        if self.lokr_factor is not None and self.adapter != "lokr":
            problems.append(f"lokr_factor belongs to adapter lokr: leave it out with {self.adapter}")
        if self.use_dora and self.changes_the_base:
            problems.append(f"init_lora_weights {self.init_lora_weights} does not go with use_dora")
        of_file = {
            "block_ranks": bool(self.block_ranks),
            "lokr_factor": self.lokr_factor is not None,
            "use_rslora": self.use_rslora,
            "init_lora_weights": self.init_lora_weights != "kaiming",
        }
        if self.init_lora is not None and any(of_file.values()):
            names = ", ".join(name for name, given in of_file.items() if given)
            problems.append(f"init_lora brings its own ranks, strengths and weights: leave out {names}")
        return problems
