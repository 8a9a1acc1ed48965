# syntax=docker/dockerfile:1
# Two stages: the first has pip and builds the environment from the hash-pinned lock, the
# second has only what runs. BASE can be overridden, e.g. by a digest or a mirror.
ARG BASE=python:3.13-slim-bookworm

FROM ${BASE} AS build
WORKDIR /app
COPY requirements.lock ./
RUN python3 -m venv /venv \
 && /venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
      --require-hashes -r requirements.lock \
 && /venv/bin/python -m compileall -q /venv

FROM ${BASE}
# lightgbm needs the OpenMP runtime.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/*
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1 \
    OPENBLAS_NUM_THREADS=1
WORKDIR /app
COPY --from=build /venv /venv
COPY gateway ./gateway
COPY models ./models
COPY config ./config
COPY gateway.toml LICENSE ./
RUN python3 -m compileall -q gateway && mkdir var && chown 10001:10001 var
USER 10001:10001
VOLUME /app/var
EXPOSE 3000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python3", "-m", "gateway", "healthcheck", "--config", "gateway.toml"]
# The shipped gateway.toml binds loopback, which is all an anonymous tenant may have: mount a
# file of your own with server.host = "0.0.0.0" and tenants with keys.
ENTRYPOINT ["python3", "-m", "gateway"]
CMD ["serve", "--config", "gateway.toml"]
