# syntax=docker/dockerfile:1
FROM rust:1.95-bookworm AS build
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends pkg-config libssl-dev libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev \
    libavcodec-dev libavformat-dev libavutil-dev libswresample-dev libswscale-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --locked --release --bin archiver

FROM debian:bookworm-slim
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends ca-certificates libssl3 \
    gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /var/lib/archiver --create-home archiver
COPY --from=build /src/target/release/archiver /usr/local/bin/archiver
USER archiver
WORKDIR /var/lib/archiver
VOLUME /var/lib/archiver
# Health and metrics; the media socket's port is set in the configuration (UDP).
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["archiver", "health"]
ENTRYPOINT ["archiver"]
CMD ["serve"]
