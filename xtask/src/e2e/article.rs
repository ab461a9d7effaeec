//! A published example serves a model with SGLang and sends requests with the openai package. This test uses
//! `qwen3-embed serve` instead of SGLang.

use std::fs;
use std::net::TcpListener;

use anyhow::{Context, Result};

use super::server::{Setup, artifacts};
use crate::workspace::root;

/// The model id of the example. The cache contains a small model under this id.
const ID: &str = "Qwen/Qwen3-Embedding-4B";

/// The port of the example.
const PORT: u16 = 30000;

/// The commit of the model in the cache. Its value has no meaning.
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The flags that the example passes to `python -m sglang.launch_server`, and environment variables with which the
/// server finds the model id in a cache, without using the network.
pub(super) fn setup() -> Result<Setup> {
    let cache = artifacts().join("hub");
    let repository = cache.join(format!("models--{}", ID.replace('/', "--")));
    let snapshot = repository.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot)?;
    fs::create_dir_all(repository.join("refs"))?;
    fs::write(repository.join("refs/main"), COMMIT)?;
    let model = root().join("fixtures/models/wide");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(model.join(file), snapshot.join(file)).with_context(|| file.to_owned())?;
    }
    let port = free_port()?.to_string();
    let command =
        ["--model-path", ID, "--is-embedding", "--host", "0.0.0.0", "--port", port.as_str()];
    let environment =
        [("HF_HUB_CACHE", cache.display().to_string()), ("HF_HUB_OFFLINE", "1".into())];
    Ok(Setup { arguments: command.map(str::to_owned).to_vec(), environment: environment.to_vec() })
}

/// The port of the example, or a free port if the port of the example is in use.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("0.0.0.0", PORT));
    let listener = listener.or_else(|_| TcpListener::bind(("0.0.0.0", 0)))?;
    Ok(listener.local_addr()?.port())
}
