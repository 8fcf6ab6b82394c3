# The server as an image. CI does not build it: its commands are run by hand where Docker is missing.
#
#   docker build -t l4kernels .                                      # with CUDA kernels: minutes
#   docker build -t l4kernels:cpu --build-arg L4K_BUILD_CUDA=0 --build-arg PIP_EXTRA_INDEX_URL=... .
#                                    # without, and torch's CPU wheel from there: no CUDA libraries
#   docker run --gpus all --stop-timeout 40 -v /path/to/checkpoint:/model:ro \
#     -p 127.0.0.1:8000:8000 -e L4K_API_KEY l4kernels
#   docker run --rm -v /path/to/checkpoint:/model:ro l4kernels inspect /model
#
# --stop-timeout is longer than `l4k serve --drain-seconds`, so that requests that run end first.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
# 1: nvcc, torch's headers, CMake and ninja come from PyPI into the build's own environment.
ARG L4K_BUILD_CUDA=1
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# What changes seldom comes first: torch and its CUDA libraries are most of the image.
COPY requirements/demo.txt /tmp/demo.txt
RUN pip install --no-cache-dir --requirement /tmp/demo.txt
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/*.whl)[cli,vision,serve,video]"
RUN useradd --create-home --uid 1000 l4k
USER l4k
WORKDIR /home/l4k
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1
EXPOSE 8000
# A large checkpoint takes minutes to load; until then /health cannot be reached.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python", "-c", \
        "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["l4k"]
CMD ["serve", "/model", "--host", "0.0.0.0", "--port", "8000"]
