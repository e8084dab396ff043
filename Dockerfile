# The pipeline in one image. CUDA's run-time libraries come with the torch wheels of the lock file; the host's driver is
# injected by the NVIDIA container toolkit (docker run --gpus all). Without a GPU the same image runs on the CPU.
ARG BASE_IMAGE=debian:12-slim

FROM ${BASE_IMAGE} AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-pip python3-venv ca-certificates \
    && rm -rf /var/lib/apt/lists/*
# The dependencies change rarely: their layer depends on the lock file alone.
COPY envs/runtime.lock /tmp/runtime.lock
RUN python3 -m venv --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --require-hashes \
        --requirement /tmp/runtime.lock
COPY pyproject.toml README.md LICENSE /opt/wmse-repro/
COPY wmse /opt/wmse-repro/wmse
RUN python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-build-isolation /opt/wmse-repro

FROM ${BASE_IMAGE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/venv /opt/venv
COPY workflow /opt/wmse-repro/workflow
COPY config.yaml LICENSE README.md /opt/wmse-repro/
COPY docker/entrypoint.sh /usr/local/bin/entrypoint
ARG REVISION=unknown
LABEL org.opencontainers.image.title="wmse-repro" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="MIT"
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    WMSE_COMMIT=${REVISION}
# Any uid may write here, so that `docker run --user` works.
RUN useradd --uid 1000 --create-home wmse \
    && mkdir -p /opt/wmse-repro/results /opt/wmse-repro/data /opt/wmse-repro/.snakemake \
    && chmod -R a+rwX /opt/wmse-repro/results /opt/wmse-repro/data /opt/wmse-repro/.snakemake
WORKDIR /opt/wmse-repro
USER wmse
ENTRYPOINT ["entrypoint"]
CMD []
