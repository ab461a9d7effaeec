//! Variables of the environment whose values count as not set.

use std::env;
use std::ffi::OsStr;

use clap::{Args, Command};

/// What the value of `NAME_PORT` begins with if the variable is one of those that Kubernetes sets for a service
/// called `name`, or Docker for a linked container: for a service `qwen3-embed`,
/// `QWEN3_EMBED_PORT=tcp://10.96.0.7:30000`.
const SERVICE_LINKS: [&str; 3] = ["tcp://", "udp://", "sctp://"];

/// Whether a variable counts as not set: it is empty, or it is the address of a service.
pub(crate) fn counts_as_unset(name: &OsStr) -> bool {
    env::var_os(name).is_some_and(|value| value.is_empty() || is_service_link(name, &value))
}

/// The variables of these arguments, with their values, that are the addresses of services.
pub(crate) fn ignored<A: Args>() -> Vec<(String, String)> {
    let command = A::augment_args(Command::default());
    let names = command.get_arguments().filter_map(|arg| arg.get_env());
    let links = names.filter_map(|name| {
        let value = env::var_os(name).filter(|value| is_service_link(name, value))?;
        Some((name.display().to_string(), value.display().to_string()))
    });
    links.collect()
}

/// Whether Kubernetes or Docker may have set the variable, to the address of a service.
fn is_service_link(name: &OsStr, value: &OsStr) -> bool {
    let (name, value) = (name.as_encoded_bytes(), value.as_encoded_bytes());
    name.ends_with(b"_PORT") && SERVICE_LINKS.iter().any(|link| value.starts_with(link.as_bytes()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn addresses_of_services_are_told_from_ports() {
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

    /// For a service `NAME` there are also `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT`,
    /// `NAME_SERVICE_PORT_WEB` and `NAME_PORT_30000_TCP`, with `_PROTO`, `_PORT` and `_ADDR` behind it.
    #[test]
    fn only_the_port_can_be_set_for_a_service() {
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
