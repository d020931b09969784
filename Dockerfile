# `dualrag serve` on PyTorch's CPU build, as a user without rights. docs/serving.md says how it is run.
#
#     docker build -t dualrag .
#     docker run --init -p 127.0.0.1:8000:8000 -v dualrag:/data dualrag     # the demo
#     docker run --init -p 127.0.0.1:8000:8000 -v "$PWD/tuned:/model:ro" dualrag --model /model

ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
# elsewhere a bare torch brings gigabytes of CUDA libraries
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY constraints.txt ./
RUN python -m venv /venv \
    && /venv/bin/pip install -c constraints.txt --index-url "$TORCH_INDEX" torch
COPY pyproject.toml README.md LICENSE ./
COPY rag_core rag_core
COPY rag_torch rag_torch
COPY rag_tf rag_tf
RUN /venv/bin/pip install -c constraints.txt '.[torch,t5,serve]'

FROM python:${PYTHON}-slim
RUN useradd --uid 10001 --create-home dualrag && install -d -o dualrag -g dualrag /data
COPY --from=build /venv /venv
# what is fetched and built for the demo or from a hub, and outlives the container
ENV PATH=/venv/bin:$PATH DUALRAG_HOME=/data/dualrag HF_HOME=/data/huggingface
VOLUME /data
WORKDIR /home/dualrag
USER 10001
EXPOSE 8000
# the demo is built at the first start, which may take minutes
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["dualrag", "serve", "--host", "0.0.0.0", "--port", "8000"]
