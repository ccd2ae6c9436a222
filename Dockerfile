# One image per service: docker build --target proxy -t sekiwake-proxy . (docker-compose.yml builds all.)
# All targets share one build of the workspace. An image contains the binary, the libraries it links and
# public CA certificates; no shell, no package manager. Requires BuildKit.
# Without a registry, deploy/images/base builds both base images under these names.
ARG RUST_IMAGE=rust:1.95-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends gcc libc6-dev libpcap-dev libsodium-dev libzmq3-dev pkg-config \
 && rm -rf /var/lib/apt/lists/*
# 1 builds faster; what it builds runs slower.
ARG OPT_LEVEL=3
WORKDIR /source
COPY . .
# The target folder is a cache, and cargo compares file times: files of another checkout or an archive could be
# older than a cached build of different sources.
RUN --mount=type=cache,id=sekiwake-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=sekiwake-target,target=/source/target,sharing=locked \
    find services shared tests deploy Cargo.toml -type f -exec touch {} + \
 && CARGO_INCREMENTAL=0 CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_OPT_LEVEL="$OPT_LEVEL" \
    cargo build --release --locked --workspace --exclude sekiwake-tests --exclude sekiwake-manual --bins \
 && mkdir /binaries \
 && for binary in capture proxy syslog-forwarder xflow-forwarder trap-forwarder storer anomaly-detector console tap sender receiver; do \
      objcopy --strip-debug "target/release/sekiwake-$binary" "/binaries/sekiwake-$binary" || exit 1; \
    done

# The files of each image, from the packages' versions at the time this layer is built.
FROM ${RUNTIME_IMAGE} AS files
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends ca-certificates libpcap0.8 libzmq5 \
 && rm -rf /var/lib/apt/lists/*
COPY deploy/images/assemble /usr/local/bin/
COPY --from=build /binaries /binaries
RUN assemble /binaries /images

FROM scratch AS common
COPY --from=files /images/common /
ENV SEKIWAKE_ADMIN=0.0.0.0:9600 SEKIWAKE_LOG_FORMAT=json
USER 65532:65532
WORKDIR /
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Sekiwake" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="MIT"

FROM common AS capture
COPY --from=files /images/capture /
# Capturing needs NET_RAW, and added capabilities are effective for root only: run it with --cap-drop ALL
# --cap-add NET_RAW.
USER 0:0
LABEL org.opencontainers.image.description="Captures syslog, flow records and SNMP traps from the wire"
RUN ["/usr/bin/sekiwake-capture", "--version"]
HEALTHCHECK --interval=5s --timeout=5s --start-period=20s CMD ["/usr/bin/sekiwake-capture", "healthcheck"]
ENTRYPOINT ["/usr/bin/sekiwake-capture"]

FROM common AS proxy
COPY --from=files /images/proxy /
ENV SEKIWAKE_PROXY_PUBLISH=tcp://*:5559 SEKIWAKE_PROXY_SUBSCRIBE=tcp://*:5560 SEKIWAKE_PROXY_CONTROL=tcp://*:5561
LABEL org.opencontainers.image.description="The bus: the address that all other services connect to"
EXPOSE 5559 5560 5561 9600
RUN ["/usr/bin/sekiwake-proxy", "--version"]
HEALTHCHECK --interval=5s --timeout=5s --start-period=20s CMD ["/usr/bin/sekiwake-proxy", "healthcheck"]
ENTRYPOINT ["/usr/bin/sekiwake-proxy"]

FROM common AS syslog-forwarder
COPY --from=files /images/syslog-forwarder /
ENV SEKIWAKE_SPOOL_DIR=/var/lib/sekiwake/spool
LABEL org.opencontainers.image.description="Forwards syslog"
EXPOSE 9600
RUN ["/usr/bin/sekiwake-syslog-forwarder", "--version"]
HEALTHCHECK --interval=5s --timeout=5s --start-period=20s CMD ["/usr/bin/sekiwake-syslog-forwarder", "healthcheck"]
ENTRYPOINT ["/usr/bin/sekiwake-syslog-forwarder"]

FROM common AS xflow-forwarder
COPY --from=files /images/xflow-forwarder /
ENV SEKIWAKE_SPOOL_DIR=/var/lib/sekiwake/spool
LABEL org.opencontainers.image.description="Forwards NetFlow, IPFIX and sFlow"
EXPOSE 9600
RUN ["/usr/bin/sekiwake-xflow-forwarder", "--version"]
HEALTHCHECK --interval=5s --timeout=5s --start-period=20s CMD ["/usr/bin/sekiwake-xflow-forwarder", "healthcheck"]
ENTRYPOINT ["/usr/bin/sekiwake-xflow-forwarder"]

FROM common AS trap-forwarder
COPY --from=files /images/trap-forwarder /
ENV SEKIWAKE_SPOOL_DIR=/var/lib/sekiwake/spool
LABEL org.opencontainers.image.description="Forwards SNMP traps"
EXPOSE 9600
RUN ["/usr/bin/sekiwake-trap-forwarder", "--version"]
HEALTHCHECK --interval=5s --timeout=5s --start-period=20s CMD ["/usr/bin/sekiwake-trap-forwarder", "healthcheck"]
ENTRYPOINT ["/usr/bin/sekiwake-trap-forwarder"]

FROM common AS storer
COPY --from=files /images/storer /
ENV SEKIWAKE_STORE_DIR=/var/lib/sekiwake
LABEL org.opencontainers.image.description="Stores syslog on disk"
EXPOSE 9600
RUN ["/usr/bin/sekiwake-storer", "--version"]
HEALTHCHECK --interval=5s --timeout=5s --start-period=20s CMD ["/usr/bin/sekiwake-storer", "healthcheck"]
ENTRYPOINT ["/usr/bin/sekiwake-storer"]

FROM common AS anomaly-detector
COPY --from=files /images/anomaly-detector /
LABEL org.opencontainers.image.description="Detects unusual rates of syslog"
EXPOSE 9600
RUN ["/usr/bin/sekiwake-anomaly-detector", "--version"]
HEALTHCHECK --interval=5s --timeout=5s --start-period=20s CMD ["/usr/bin/sekiwake-anomaly-detector", "healthcheck"]
ENTRYPOINT ["/usr/bin/sekiwake-anomaly-detector"]

FROM common AS console
COPY --from=files /images/console /
LABEL org.opencontainers.image.description="Shows all services, and what is lost where, on one page"
EXPOSE 9600
RUN ["/usr/bin/sekiwake-console", "--version"]
HEALTHCHECK --interval=5s --timeout=5s --start-period=20s CMD ["/usr/bin/sekiwake-console", "healthcheck"]
ENTRYPOINT ["/usr/bin/sekiwake-console"]

FROM common AS tap
COPY --from=files /images/tap /
LABEL org.opencontainers.image.description="Prints records on the bus"
RUN ["/usr/bin/sekiwake-tap", "--version"]
ENTRYPOINT ["/usr/bin/sekiwake-tap"]

# For demonstrations and tests.
FROM common AS sender
COPY --from=files /images/sender /
LABEL org.opencontainers.image.description="Sends test traffic"
RUN ["/usr/bin/sekiwake-sender", "--version"]
ENTRYPOINT ["/usr/bin/sekiwake-sender"]

FROM common AS receiver
COPY --from=files /images/receiver /
LABEL org.opencontainers.image.description="Counts received datagrams"
RUN ["/usr/bin/sekiwake-receiver", "--version"]
ENTRYPOINT ["/usr/bin/sekiwake-receiver"]
