# Prometheus and Alertmanager from the distribution's packages, where their own images cannot be pulled:
#   docker build -f deploy/images/monitoring.Dockerfile --target prometheus -t sekiwake-prometheus deploy/images
# Then set PROMETHEUS_IMAGE=sekiwake-prometheus, ALERTMANAGER_IMAGE=sekiwake-alertmanager. Debian has no
# package of Grafana.
ARG RUNTIME_IMAGE=debian:bookworm-slim

FROM ${RUNTIME_IMAGE} AS prometheus
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/* \
 && install -d -o 65534 -g 65534 /prometheus
USER 65534:65534
ENTRYPOINT ["/usr/bin/prometheus"]

FROM ${RUNTIME_IMAGE} AS alertmanager
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus-alertmanager && rm -rf /var/lib/apt/lists/* \
 && install -d -o 65534 -g 65534 /alertmanager
USER 65534:65534
ENTRYPOINT ["/usr/bin/prometheus-alertmanager"]
