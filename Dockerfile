# An image of the server. Models are stored in a volume, so that each model is downloaded only once:
#
#   docker build --tag qwen3-embed .
#   docker run -p 30000:30000 -v qwen3-models:/models qwen3-embed --model-path Qwen/Qwen3-Embedding-0.6B
#
# Without arguments, the server serves a small model that is part of the program.

FROM rust:1-slim-trixie AS build
WORKDIR /source
COPY . .
RUN cargo install --locked --path crates/qwen3-embed-cli --root /usr/local

FROM debian:trixie-slim
COPY --from=build /usr/local/bin/qwen3-embed /usr/local/bin/
ENV HF_HOME=/models QWEN3_EMBED_HOST=0.0.0.0
VOLUME /models
EXPOSE 30000
# The health check uses bash, which can open TCP connections, because the image has no curl. The start period is long
# because the server is not ready while a model is downloaded and loaded. To change the port, set QWEN3_EMBED_PORT
# instead of `--port`, because the health check reads this variable. If a Kubernetes service is called qwen3-embed,
# Kubernetes sets the variable to a URL, which the server and the health check ignore.
HEALTHCHECK --start-period=30m CMD ["bash", "-c", \
    "port=${QWEN3_EMBED_PORT:-30000}; [[ $port == *://* ]] && port=30000; exec 3<>/dev/tcp/127.0.0.1/$port && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && read -r line <&3 && [[ $line == *' 200 '* ]]"]
ENTRYPOINT ["qwen3-embed", "serve"]
