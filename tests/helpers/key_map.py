"""Names of the full SDXL's LoRA modules in two clients' tables: diffusers' to those of the original layout."""

import json

from tests.helpers.paths import ROOT

KEY_MAP = json.loads((ROOT / "tests" / "data" / "sdxl_key_map.json").read_text())
