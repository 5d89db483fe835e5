"""Graphics cards in this machine, usable by torch or not, and reasons why torch cannot use them. Imports no torch."""

import contextlib
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

NVIDIA_DRIVER = Path("/proc/driver/nvidia")
AMD_DRIVER = Path("/dev/kfd")
NEEDED_DRIVER = 580  # for CUDA 13, with which torch's default Linux wheels are built
INSTALL = "docs/install.md"
SECONDS = 10  # timeout for nvidia-smi, which is slow when a driver is broken


def nvidia_cards() -> list[tuple[str, str]]:
    """Return the name and driver version of each NVIDIA card; an empty string for an unknown value."""
    command = shutil.which("nvidia-smi")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if command:
            query = [command, "--query-gpu=name,driver_version", "--format=csv,noheader"]
            said = subprocess.run(query, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
            rows = [line.split(",") for line in said.splitlines() if line.count(",") == 1]
            if rows:
                return [(name.strip(), driver.strip()) for name, driver in rows]
    found = []
    for path in sorted(NVIDIA_DRIVER.glob("gpus/*/information")):
        with contextlib.suppress(OSError):
            name = re.search(r"^Model:\s*(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            found.append((name[1].strip() if name else "", kernel_driver()))
    return found


def kernel_driver() -> str:
    """Return the version of NVIDIA's kernel driver; an empty string without one."""
    with contextlib.suppress(OSError):
        found = re.search(r"\s(\d{3}\.[\d.]+)\s", (NVIDIA_DRIVER / "version").read_text(encoding="utf-8"))
        return found[1] if found else ""
    return ""


def why_no_gpu(torch: ModuleType) -> tuple[str, str]:
    """Return the reason why torch has no GPU, and the remedy."""
    cards, build = nvidia_cards(), torch.version
    if cards:
        name, driver = cards[0]
        card = f"an NVIDIA card is here ({name or 'unnamed'})"
        if not build.cuda:
            what = f"{card}, but torch {torch.__version__} has no CUDA"
            return what, f"run `pip uninstall torch`, then the command for CUDA of {INSTALL}"
        if driver.split(".")[0].isdigit() and int(driver.split(".")[0]) < needed_driver(build.cuda):
            what = f"{card}, but its driver {driver} is too old for CUDA {build.cuda} of this torch"
            return what, f"install NVIDIA's driver {needed_driver(build.cuda)} or newer, or a torch for an older CUDA"
        what = f"{card}, but torch {torch.__version__} with CUDA {build.cuda} cannot use it"
        return what, "check `nvidia-smi` and CUDA_VISIBLE_DEVICES; restart the machine after a driver update"
    if AMD_DRIVER.exists() and not build.hip:
        what = f"an AMD card is here, but torch {torch.__version__} has no ROCm"
        return what, f"run `pip uninstall torch`, then the command for ROCm of {INSTALL}"
    return "torch sees no GPU", f"on a machine with one, install torch as {INSTALL} says"


def needed_driver(cuda: str) -> int:
    """Return the major version of the oldest NVIDIA driver that runs a CUDA version."""
    return {"11": 450, "12": 525}.get(cuda.split(".")[0], NEEDED_DRIVER)
