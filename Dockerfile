# Every service as an image of its own: docker build --target proxy -t sekiwake-proxy . (docker-compose.yml does it for all.)
# One build of the workspace is shared by all targets. An image has the binary, the libraries that it links and the certificates of
# public authorities; no shell, no package manager. It takes BuildKit.
# Where no registry can be reached, deploy/images/base makes both of these, under these names.
ARG RUST_IMAGE=rust:1.95-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends gcc libc6-dev libpcap-dev libsodium-dev libzmq3-dev pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
# The target folder outlives the image, and cargo goes by the files' times: those of another checkout, or of an archive, would pass for built.
RUN --mount=type=cache,id=sekiwake-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=sekiwake-target,target=/source/target,sharing=locked \
    find services shared tests Cargo.toml -type f -exec touch {} + \
 && CARGO_INCREMENTAL=0 cargo build --release --locked --workspace --exclude sekiwake-tests --bins \
 && mkdir /binaries \
 && for binary in capture proxy syslog-forwarder xflow-forwarder trap-forwarder storer anomaly-detector tap sender receiver; do \
      objcopy --strip-debug "target/release/sekiwake-$binary" "/binaries/sekiwake-$binary" || exit 1; \
    done

# The files of each image, of the distribution's packages as they are when this layer is made.
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
# Capturing takes NET_RAW, and added capabilities are a user's only if that is root: started with --cap-drop ALL --cap-add NET_RAW.
USER 0:0
LABEL org.opencontainers.image.description="Takes syslog, flow records and SNMP traps off the wire"
RUN ["/usr/bin/sekiwake-capture", "--version"]
HEALTHCHECK --interval=5s --timeout=5s --start-period=20s CMD ["/usr/bin/sekiwake-capture", "healthcheck"]
ENTRYPOINT ["/usr/bin/sekiwake-capture"]

FROM common AS proxy
COPY --from=files /images/proxy /
ENV SEKIWAKE_PROXY_PUBLISH=tcp://*:5559 SEKIWAKE_PROXY_SUBSCRIBE=tcp://*:5560 SEKIWAKE_PROXY_CONTROL=tcp://*:5561
LABEL org.opencontainers.image.description="The bus: the one address that all others know"
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
LABEL org.opencontainers.image.description="Forwards NetFlow, IPFIX and sFlow"
EXPOSE 9600
RUN ["/usr/bin/sekiwake-xflow-forwarder", "--version"]
HEALTHCHECK --interval=5s --timeout=5s --start-period=20s CMD ["/usr/bin/sekiwake-xflow-forwarder", "healthcheck"]
ENTRYPOINT ["/usr/bin/sekiwake-xflow-forwarder"]

FROM common AS trap-forwarder
COPY --from=files /images/trap-forwarder /
LABEL org.opencontainers.image.description="Forwards SNMP traps"
EXPOSE 9600
RUN ["/usr/bin/sekiwake-trap-forwarder", "--version"]
HEALTHCHECK --interval=5s --timeout=5s --start-period=20s CMD ["/usr/bin/sekiwake-trap-forwarder", "healthcheck"]
ENTRYPOINT ["/usr/bin/sekiwake-trap-forwarder"]

FROM common AS storer
COPY --from=files /images/storer /
ENV SEKIWAKE_STORE_DIR=/var/lib/sekiwake
LABEL org.opencontainers.image.description="Keeps syslog on disk"
EXPOSE 9600
RUN ["/usr/bin/sekiwake-storer", "--version"]
HEALTHCHECK --interval=5s --timeout=5s --start-period=20s CMD ["/usr/bin/sekiwake-storer", "healthcheck"]
ENTRYPOINT ["/usr/bin/sekiwake-storer"]

FROM common AS anomaly-detector
COPY --from=files /images/anomaly-detector /
LABEL org.opencontainers.image.description="Notices too much or too little syslog"
EXPOSE 9600
RUN ["/usr/bin/sekiwake-anomaly-detector", "--version"]
HEALTHCHECK --interval=5s --timeout=5s --start-period=20s CMD ["/usr/bin/sekiwake-anomaly-detector", "healthcheck"]
ENTRYPOINT ["/usr/bin/sekiwake-anomaly-detector"]

FROM common AS tap
COPY --from=files /images/tap /
LABEL org.opencontainers.image.description="Prints what is on the bus"
RUN ["/usr/bin/sekiwake-tap", "--version"]
ENTRYPOINT ["/usr/bin/sekiwake-tap"]

# For demonstrations and tests.
FROM common AS sender
COPY --from=files /images/sender /
LABEL org.opencontainers.image.description="Test traffic"
RUN ["/usr/bin/sekiwake-sender", "--version"]
ENTRYPOINT ["/usr/bin/sekiwake-sender"]

FROM common AS receiver
COPY --from=files /images/receiver /
LABEL org.opencontainers.image.description="Counts what arrives"
RUN ["/usr/bin/sekiwake-receiver", "--version"]
ENTRYPOINT ["/usr/bin/sekiwake-receiver"]
