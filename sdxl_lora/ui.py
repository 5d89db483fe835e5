"""The web page under its former name: `python -m sdxl_lora.ui` runs `python -m webui`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("webui", run_name="__main__")
