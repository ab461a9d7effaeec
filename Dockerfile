# The server. Models are kept in the volume, so that they are downloaded once:
#
#   docker build --tag qwen3-embed .
#   docker run -p 30000:30000 -v qwen3-models:/models qwen3-embed --model-path Qwen/Qwen3-Embedding-0.6B

FROM rust:1-slim-trixie AS build
WORKDIR /source
COPY . .
RUN cargo install --locked --path crates/qwen3-embed-cli --root /usr/local

FROM debian:trixie-slim
COPY --from=build /usr/local/bin/qwen3-embed /usr/local/bin/
ENV HF_HOME=/models QWEN3_EMBED_HOST=0.0.0.0
VOLUME /models
EXPOSE 30000
# bash can open connections. While a model is downloaded and loaded, the server is not ready. Another port is set by
# QWEN3_EMBED_PORT and not by `--port`, because the check reads it too. Kubernetes sets this variable to a URL if a
# service is called qwen3-embed: server and check ignore it then.
HEALTHCHECK --start-period=30m CMD ["bash", "-c", \
    "port=${QWEN3_EMBED_PORT:-30000}; [[ $port == *://* ]] && port=30000; exec 3<>/dev/tcp/127.0.0.1/$port && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && read -r line <&3 && [[ $line == *' 200 '* ]]"]
ENTRYPOINT ["qwen3-embed", "serve"]
