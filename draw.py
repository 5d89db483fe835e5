"""Draw a prompt with the LoRA of a run: draw.py RUN PROMPT FILE.png"""

import sys

import torch
import yaml
from diffusers import StableDiffusionXLPipeline

run, prompt, file = sys.argv[1:]
with open(f"{run}/config.yaml", encoding="utf-8") as settings:
    trained = yaml.safe_load(settings)
gpu = torch.cuda.is_available()
pipeline = StableDiffusionXLPipeline.from_pretrained(
    trained["pretrained_model_name_or_path"],
    variant=trained.get("variant"),
    torch_dtype=torch.float16 if gpu else torch.float32,
)
pipeline.load_lora_weights(run, weight_name="pytorch_lora_weights.safetensors")
if gpu:
    pipeline.enable_model_cpu_offload()
pipeline(prompt, generator=torch.Generator().manual_seed(0)).images[0].save(file)
