# The pipeline in one image. CUDA's run-time libraries come with the torch wheels of the lock file; the host's driver is
# injected by the NVIDIA container toolkit (docker run --gpus all). Without a GPU the same image runs on the CPU.
#
# Python packages are pinned with their hashes (envs/runtime.lock), the base by its digest. Debian's packages are those
# of the day of the build: their versions are written into the image's bill of materials (sbom.cdx.json).
ARG BASE_IMAGE=debian:bookworm-20260803-slim@sha256:abd67ffcfa541b485a3dff59865ab629aa048a6c613e639d36e7456b0b229241

FROM ${BASE_IMAGE} AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
# The dependencies change rarely: their layers depend on the lock file alone. The largest packages get layers of their
# own, which stay the same, and need no new transfer, when other pins change. Byte code is compiled here, because many
# short jobs start from a file system that may be read-only; its validity does not depend on time stamps. (One file of torch
# is for newer Pythons only.)
COPY envs/runtime.lock /tmp/runtime.lock
RUN python3 -m venv --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --require-hashes \
        --progress-bar off --requirement /tmp/runtime.lock \
    && python3 -m compileall -q -j 0 -x py312 --invalidation-mode unchecked-hash /opt/venv/lib \
    && mkdir /layers \
    && mv /opt/venv/lib/python3.11/site-packages/nvidia \
        /opt/venv/lib/python3.11/site-packages/torch \
        /opt/venv/lib/python3.11/site-packages/triton /layers/
COPY pyproject.toml README.md LICENSE config.yaml /src/
COPY wmse /src/wmse
COPY workflow /src/workflow
# torch is out of the way here, and this step does not need it: --no-deps.
RUN python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --no-deps --no-build-isolation \
        --root /project /src \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /project

FROM ${BASE_IMAGE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
COPY --from=build /layers/nvidia /opt/venv/lib/python3.11/site-packages/nvidia
COPY --from=build /layers/torch /opt/venv/lib/python3.11/site-packages/torch
COPY --from=build /layers/triton /opt/venv/lib/python3.11/site-packages/triton
COPY --from=build /opt/venv /opt/venv
# What any user may write, so that `docker run --user` works with every uid, and so that a read-only root file system
# needs no more than a /tmp: both are volumes. Snakemake's own notes lie with the results that they are about.
RUN useradd --uid 1000 --no-log-init --no-create-home --home-dir /tmp wmse \
    && mkdir -p /opt/wmse-repro/results /opt/wmse-repro/data \
    && chown wmse:wmse /opt/wmse-repro/results /opt/wmse-repro/data \
    && chmod 0777 /opt/wmse-repro/results /opt/wmse-repro/data \
    && ln -s results/.snakemake /opt/wmse-repro/.snakemake
COPY docker/entrypoint.sh /usr/local/bin/entrypoint
COPY docker/sbom.py /opt/wmse-repro/docker/sbom.py
COPY config.yaml LICENSE README.md /opt/wmse-repro/
COPY workflow /opt/wmse-repro/workflow
COPY --from=build /project/opt/venv /opt/venv
RUN /opt/venv/bin/python /opt/wmse-repro/docker/sbom.py > /opt/wmse-repro/sbom.cdx.json
# A user's own site-packages, which Apptainer shows inside, must not be mixed with the image's. LOGNAME: libraries ask
# for the user's name, which an arbitrary uid does not have.
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    HOME=/tmp \
    LOGNAME=wmse \
    MPLCONFIGDIR=/tmp/matplotlib \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/wmse-repro
VOLUME ["/opt/wmse-repro/data", "/opt/wmse-repro/results"]
# There is no USER: the entry point starts as root only to become, before anything else, the user who owns the mounted
# results (uid 1000 where nothing is mounted), or whoever `docker run --user` names.
ENTRYPOINT ["entrypoint"]
CMD []
HEALTHCHECK --interval=15m --timeout=2m --start-period=15m CMD ["entrypoint", "wmse", "selfcheck", "--quiet"]
ARG VERSION=0.1.0
ARG REVISION=unknown
ENV WMSE_COMMIT=${REVISION}
LABEL org.opencontainers.image.title="wmse-repro" \
      org.opencontainers.image.description="Reproduction of W-MSE (ICML 2021), from the data to the tables" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="MIT"
