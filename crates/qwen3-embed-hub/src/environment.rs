//! Reads the environment variables that other programs for the hub also use. No other module reads the environment.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::hub::Hub;
use crate::proxy::Proxies;

impl Hub {
    /// Reads the settings from the environment. Other programs for the hub use the same variables.
    ///
    /// | variable | sets | default |
    /// |---|---|---|
    /// | `HF_HOME` | the folder for files of programs for the hub | `huggingface` in `XDG_CACHE_HOME` or `~/.cache` |
    /// | `HF_HUB_CACHE` | the folder of the cache | `hub` in `HF_HOME` |
    /// | `HF_TOKEN` | the token for private and restricted models | the contents of `HF_TOKEN_PATH`, or of `token` in `HF_HOME` |
    /// | `HF_ENDPOINT` | the address of the hub | `https://huggingface.co` |
    /// | `HF_HUB_OFFLINE` | `1`: use only the cache | the value of `TRANSFORMERS_OFFLINE` |
    /// | `HTTPS_PROXY`, `HTTP_PROXY` | the proxy for URLs of this scheme | the value of `ALL_PROXY` |
    /// | `NO_PROXY` | hosts that are reached without a proxy | none |
    /// | `SSL_CERT_FILE` | a PEM file with the trusted certificate authorities | Mozilla's list |
    ///
    /// The proxy variables may also be in lower case; the lower-case name takes precedence. A proxy URL begins with
    /// `http://`, `https://`, `socks4://`, `socks4a://`, `socks5://` or `socks5h://`. A request that needs a proxy
    /// whose value is not such a URL fails with [`HubProblem::Proxy`](crate::HubProblem::Proxy). `HTTP_PROXY` in upper
    /// case is ignored if `REQUEST_METHOD` is set: this variable marks a CGI program, and the clients of a CGI program
    /// can set `HTTP_PROXY` through the header `Proxy`. `NO_PROXY` is a list of entries with commas between them. An
    /// entry is a host name, which includes the hosts below it, an address, a network such as `10.0.0.0/8`, or `*`.
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

/// The value of a variable that is set and not empty.
fn value(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

fn text(name: &str) -> Option<String> {
    value(name)?.into_string().ok()
}

fn path(name: &str) -> Option<PathBuf> {
    value(name).map(|path| in_home(Path::new(&path)))
}

/// Replaces a leading `~` by the user's home folder.
fn in_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_path_buf(),
    }
}
