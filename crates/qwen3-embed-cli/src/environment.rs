//! Environment variables that are treated as if they were not set.

use std::env;
use std::ffi::OsStr;

use clap::{Args, Command};

/// The prefixes of the address of a service. For a service called `name`, Kubernetes sets the variable `NAME_PORT` to
/// the address of the service, and Docker does the same for a linked container. For a service `qwen3-embed`, this is
/// `QWEN3_EMBED_PORT=tcp://10.96.0.7:30000`, which is not a port.
const SERVICE_LINKS: [&str; 3] = ["tcp://", "udp://", "sctp://"];

/// Whether a variable is treated as if it were not set, because its value is empty or the address of a service.
pub(crate) fn counts_as_unset(name: &OsStr) -> bool {
    env::var_os(name).is_some_and(|value| value.is_empty() || is_service_link(name, &value))
}

/// The environment variables of these arguments that contain the address of a service, with their values.
pub(crate) fn ignored<A: Args>() -> Vec<(String, String)> {
    let command = A::augment_args(Command::default());
    let names = command.get_arguments().filter_map(|arg| arg.get_env());
    let links = names.filter_map(|name| {
        let value = env::var_os(name).filter(|value| is_service_link(name, value))?;
        Some((name.display().to_string(), value.display().to_string()))
    });
    links.collect()
}

/// Whether the value of the variable `name` is the address of a service, which Kubernetes or Docker has set.
fn is_service_link(name: &OsStr, value: &OsStr) -> bool {
    let (name, value) = (name.as_encoded_bytes(), value.as_encoded_bytes());
    name.ends_with(b"_PORT") && SERVICE_LINKS.iter().any(|link| value.starts_with(link.as_bytes()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn recognizes_addresses_of_services() {
        for (name, value, expected) in [
            ("QWEN3_EMBED_PORT", "tcp://10.96.0.7:30000", true),
            ("QWEN3_EMBED_PORT", "udp://[fd00::7]:30000", true),
            ("QWEN3_EMBED_PORT", "sctp://10.96.0.7:30000", true),
            ("QWEN3_EMBED_PORT", "30000", false),
            ("QWEN3_EMBED_PORT", "x", false),
            ("QWEN3_EMBED_PORT", "http://10.96.0.7:30000", false),
            ("QWEN3_EMBED_MODEL_PATH", "tcp://10.96.0.7:30000", false),
        ] {
            assert_eq!(is_service_link(name.as_ref(), value.as_ref()), expected, "{name}={value}");
        }
    }

    /// For a service `NAME`, Kubernetes also sets `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT`, `NAME_SERVICE_PORT_WEB`,
    /// `NAME_PORT_30000_TCP`, `NAME_PORT_30000_TCP_PROTO`, `NAME_PORT_30000_TCP_PORT` and `NAME_PORT_30000_TCP_ADDR`.
    #[test]
    fn only_the_port_collides_with_variables_of_kubernetes() {
        let command = crate::Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        let names = serve.get_arguments().filter_map(|arg| arg.get_env()?.to_str());
        let settable = names.filter(|name| {
            ["_PORT_", "_SERVICE_HOST", "_SERVICE_PORT"].iter().any(|part| name.contains(part))
                || name.ends_with("_PORT")
        });
        assert_eq!(settable.collect::<Vec<_>>(), ["QWEN3_EMBED_PORT"]);
    }
}
