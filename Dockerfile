# One image, for GPUs or for CPUs by its base; docs/cluster.md has the commands that build it, run it on one host and
# on several, and turn it into an Apptainer image.
ARG BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04

FROM ${BASE_IMAGE} AS build
# Debian's and Ubuntu's archives keep only the newest build of a package, so their versions cannot be pinned here; a
# digest in BASE_IMAGE pins the rest of the system, and launch/requirements*.txt everything else, with hashes.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
# Everything that the environment is made from, and no more: a change elsewhere leaves its layer as it is.
WORKDIR /opt/resist_hvd
COPY LICENSE README.md pyproject.toml ./
COPY launch launch
COPY resist_hvd/__init__.py resist_hvd/
# The GPUs to build Horovod's NCCL operations for, since a build sees none, empty for an image without them; more flags of
# launch/setup, such as --dali; and a mirror of the Python registry.
ARG CUDA_ARCH=80,90
ARG SETUP_FLAGS=
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
# hadolint ignore=SC2086
RUN --mount=type=cache,target=/root/.cache \
    if [ -n "${CUDA_ARCH}" ]; then cuda="--cuda yes --cuda-arch ${CUDA_ARCH}"; else cuda="--cuda no"; fi \
    && UV_LINK_MODE=copy launch/setup ${cuda} ${SETUP_FLAGS}

FROM ${BASE_IMAGE}
# tini ends what a rank leaves behind; ssh is how mpirun starts ranks on other hosts; --compile needs a compiler and
# Python's headers.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        g++ openssh-client python3-dev python3-venv tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1001 resist
WORKDIR /opt/resist_hvd
RUN chown 1001 /opt/resist_hvd
COPY --from=build --chown=1001 /opt/resist_hvd/.venv .venv
COPY --chown=1001 . .
USER 1001
# Docker forbids reading another process's memory, by which Open MPI would copy large messages: they go through shared
# memory. Ranks may outnumber cores. Of a GPU the decoder of JPEG files is wanted, too: without `video` it stays outside.
ENV PATH=/opt/resist_hvd/.venv/bin:$PATH \
    OMPI_MCA_btl_vader_single_copy_mechanism=none \
    OMPI_MCA_rmaps_base_oversubscribe=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
ENTRYPOINT ["tini", "--"]
# No health check: a run watches its own ranks, and ends with a status if one is lost.
CMD ["launch/run", "-np", "4"]
