//! The environment variables that the hub's other programs heed too: read here and nowhere else.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::hub::Hub;
use super::proxy::Proxies;

impl Hub {
    /// The hub as the environment has it, like for the hub's own programs:
    ///
    /// | variable | what it sets | otherwise |
    /// |---|---|---|
    /// | `HF_HOME` | where the hub's programs keep their files | `huggingface` in `XDG_CACHE_HOME` or `~/.cache` |
    /// | `HF_HUB_CACHE` | the cache of downloaded models | `hub` in `HF_HOME` |
    /// | `HF_TOKEN` | the token for private and restricted models | the file `HF_TOKEN_PATH`, or `token` in `HF_HOME` |
    /// | `HF_ENDPOINT` | the address of the hub | `https://huggingface.co` |
    /// | `HF_HUB_OFFLINE` | `1`: no network, only the cache | `TRANSFORMERS_OFFLINE` |
    /// | `HTTPS_PROXY`, `HTTP_PROXY` | the proxy of URLs of this scheme | `ALL_PROXY` |
    /// | `NO_PROXY` | hosts that are reached without a proxy | none |
    /// | `SSL_CERT_FILE` | a PEM file of the certificate authorities to trust | Mozilla's |
    ///
    /// The names of proxies may be in lower case, which comes first. A proxy is an HTTP, HTTPS or SOCKS proxy:
    /// `http://`, `https://`, `socks4://`, `socks4a://`, `socks5://` or `socks5h://`. A value that is none of these is
    /// an error of requests that would need it. `HTTP_PROXY` in upper case is ignored where `REQUEST_METHOD` is set,
    /// because it may then come from a client of a CGI server. Hosts in `NO_PROXY` are divided by commas: names, which
    /// stand for the hosts below them too, addresses, networks such as `10.0.0.0/8`, or `*`.
    pub fn from_env() -> Self {
        let home = path("HF_HOME").unwrap_or_else(|| {
            let caches = path("XDG_CACHE_HOME").unwrap_or_else(|| in_home(Path::new("~/.cache")));
            caches.join("huggingface")
        });
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let mut hub = Self::new(cache.unwrap_or_else(|| home.join("hub")));
        if let Some(endpoint) = text("HF_ENDPOINT") {
            hub = hub.endpoint(endpoint);
        }
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
        if let Some(token) = token.or_else(|| fs::read_to_string(token_file).ok()) {
            hub = hub.token(token);
        }
        let offline = text("HF_HUB_OFFLINE").or_else(|| text("TRANSFORMERS_OFFLINE"));
        let is_true = |value: String| {
            ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
        };
        hub = hub.offline(offline.is_some_and(is_true));
        hub.proxies = Proxies::read(value);
        hub.certificates = path("SSL_CERT_FILE");
        hub
    }
}

/// A variable that is there and not empty.
fn value(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

fn text(name: &str) -> Option<String> {
    value(name)?.into_string().ok()
}

fn path(name: &str) -> Option<PathBuf> {
    value(name).map(|path| in_home(Path::new(&path)))
}

/// The path, with the user's folder for a `~` in front.
fn in_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_path_buf(),
    }
}
