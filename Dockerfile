# The web page and every command, for NVIDIA GPUs; docs/cloud.md says how to use it.
#
#   docker build --tag sdxl-lora-trainer .
#
# Nothing of CUDA is in the base image: torch's packages bring their own, the machine brings the driver and NVIDIA's
# container toolkit. For drivers older than 580: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126
FROM python:3.12-slim

# Triton, which compiles kernels while it runs (--compile), needs a C compiler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# Your own user's number, so that what is written into mounted folders is yours.
ARG UID=1000
RUN useradd --create-home --uid "$UID" lora \
    && mkdir /models /data /runs \
    && chown lora /models /data /runs

WORKDIR /app
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130
COPY requirements.txt ./
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep ^torch== requirements.txt)" \
    && pip install --no-cache-dir --requirement requirements.txt

COPY pyproject.toml README.md LICENSE train_sdxl_lora.py ./
COPY accelerate_configs accelerate_configs
COPY examples examples
COPY preprocess preprocess
COPY sdxl_lora sdxl_lora
COPY webui webui
RUN pip install --no-cache-dir --no-deps --editable .

ENV HF_HOME=/models/huggingface \
    LORA_PROJECTS_DIR=/runs \
    MODELS_DIR=/models \
    PYTHONUNBUFFERED=1
VOLUME ["/models", "/data", "/runs"]
USER lora
EXPOSE 7860
STOPSIGNAL SIGTERM

# 401 is the page asking for its password, without which it does not listen to others.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "import http.client; page = http.client.HTTPConnection('127.0.0.1', 7860, timeout=8); page.request('GET', '/'); raise SystemExit(page.getresponse().status not in (200, 401))"]

CMD ["python", "-m", "webui", "--host", "0.0.0.0", "--port", "7860"]
