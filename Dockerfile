# ssl3d on NVIDIA GPUs; docs/install.md says how to build and run it. jax brings the CUDA libraries.
FROM nvidia/cuda:12.6.3-base-ubuntu24.04

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3.12 python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

RUN python3.12 -m venv /opt/ssl3d
ENV PATH=/opt/ssl3d/bin:$PATH

COPY . /tmp/ssl3d
RUN pip install --no-cache-dir "/tmp/ssl3d[cuda]" && rm -rf /tmp/ssl3d

# Runs, and the caches of users without a home.
WORKDIR /work
ENV HOME=/work
ENTRYPOINT ["ssl3d"]
CMD ["--help"]
