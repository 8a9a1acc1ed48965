# syntax=docker/dockerfile:1
# Two stages: the first has pip and builds the environment from the hash-pinned lock, the
# second has only what runs. BASE can be overridden, e.g. by a digest or a mirror. The official
# images' Python is built with profile-guided optimisation, as Debian's own is; without, the gateway
# takes more CPU time a request, so another base should have it, too.
ARG BASE=python:3.13-slim-bookworm

FROM ${BASE} AS build
WORKDIR /app
COPY requirements.lock ./
# Neither the packages' own tests nor the installers are of use in the image.
RUN python3 -m venv /venv \
 && /venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
      --no-compile --require-hashes -r requirements.lock \
 && find /venv -type d -name tests -prune -exec rm -r {} + \
 && /venv/bin/python -m pip uninstall --yes --quiet setuptools pip \
 && /venv/bin/python -m compileall -q /venv

FROM ${BASE}
LABEL org.opencontainers.image.title="SageSched Gateway" \
      org.opencontainers.image.licenses="Apache-2.0"
# lightgbm needs the OpenMP runtime. `sagesched` is the command of the README.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/* \
 && printf '#!/bin/sh\nexec python3 -m gateway "$@"\n' > /usr/local/bin/sagesched \
 && chmod 755 /usr/local/bin/sagesched
ENV PATH=/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
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
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
  CMD ["sagesched", "healthcheck", "--config", "gateway.toml"]
# The shipped gateway.toml binds loopback, which is all an anonymous tenant may have: mount a
# file of your own over /app/gateway.toml with server.host = "0.0.0.0" and tenants with keys.
ENTRYPOINT ["sagesched"]
CMD ["serve", "--config", "gateway.toml"]
