//! Chooses the proxy of a request from environment variables.
//!
//! | variable | sets |
//! |---|---|
//! | `http_proxy`, `HTTP_PROXY` | the proxy for `http://` URLs |
//! | `https_proxy`, `HTTPS_PROXY` | the proxy for `https://` URLs |
//! | `all_proxy`, `ALL_PROXY` | the proxy for URLs whose scheme has no proxy of its own |
//! | `no_proxy`, `NO_PROXY` | the hosts that are reached without a proxy |
//!
//! As in curl and in Python's library requests, the lower-case name takes precedence over the upper-case name, and the
//! variable of the scheme takes precedence over `all_proxy`. A CGI server sets `HTTP_PROXY` to the value of a client's
//! header `Proxy`, so a CGI program must not trust this variable. curl always ignores `HTTP_PROXY`. requests ignores
//! `HTTP_PROXY` if `REQUEST_METHOD` is set, which marks a CGI program. This module does the same as requests, because
//! other programs for the hub use requests.

use std::ffi::{OsStr, OsString};
use std::net::IpAddr;

use ureq::http::Uri;

use crate::error::HubProblem;

/// The proxies, and the hosts that are reached without a proxy.
#[derive(Clone, Default)]
pub(crate) struct Proxies {
    http: Option<Setting>,
    https: Option<Setting>,
    exempt: Vec<Exempt>,
}

/// An environment variable that sets a proxy.
#[derive(Clone)]
pub(crate) struct Setting {
    variable: String,
    /// The variable's value, without user name and password.
    value: String,
    /// `None` if the value is not the URL of a proxy.
    proxy: Option<ureq::Proxy>,
}

/// An entry of `no_proxy`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exempt {
    All,
    /// The addresses whose first bits are equal to those of this address. The number is the number of these bits.
    Network(IpAddr, u8),
    /// A host and the hosts below it, at one port or at all ports.
    Host(String, Option<u16>),
}

impl Proxies {
    /// Reads the variables. `value` returns the value of a variable that is set and not empty.
    pub(crate) fn read(value: impl Fn(&str) -> Option<OsString>) -> Self {
        let either = |name: &str| {
            let names = [name.to_owned(), name.to_ascii_uppercase()];
            names.into_iter().find_map(|name| value(&name).map(|value| (name, value)))
        };
        let is_cgi = value("REQUEST_METHOD").is_some();
        let http = either("http_proxy").filter(|(name, _)| !is_cgi || name == "http_proxy");
        let proxy_of = |setting: Option<(String, OsString)>| {
            let (variable, value) = setting.or_else(|| either("all_proxy"))?;
            Some(Setting::new(variable, &value))
        };
        let no_proxy = either("no_proxy").map(|(_, value)| value).unwrap_or_default();
        Self {
            http: proxy_of(http),
            https: proxy_of(either("https_proxy")),
            exempt: Exempt::parse_all(&no_proxy.to_string_lossy()),
        }
    }

    /// The variable whose proxy is used for a URL, or `None` if the host is reached directly.
    pub(crate) fn of(&self, url: &str) -> Option<&Setting> {
        let url: Uri = url.parse().ok()?;
        let is_https = url.scheme_str() == Some("https");
        let setting = if is_https { &self.https } else { &self.http };
        let port = url.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let host = url.host()?.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        setting.as_ref().filter(|_| !self.exempt.iter().any(|entry| entry.has(&host, port)))
    }
}

impl Setting {
    fn new(variable: String, value: &OsStr) -> Self {
        let proxy = value.to_str().and_then(|value| ureq::Proxy::new(value.trim()).ok());
        let proxy = proxy.filter(has_port_or_none);
        let value = without_credentials(value.to_string_lossy().trim());
        Self { variable, value, proxy }
    }

    /// The proxy, or an error if the variable's value is not the URL of a proxy.
    pub(crate) fn proxy(&self) -> Result<&ureq::Proxy, HubProblem> {
        let Self { variable, value, proxy } = self;
        let problem = || HubProblem::Proxy { variable: variable.clone(), value: value.clone() };
        proxy.as_ref().ok_or_else(problem)
    }

    /// The variable and its value, for error messages.
    pub(crate) fn described(&self) -> String {
        format!("{}={}", self.variable, self.value)
    }
}

impl Exempt {
    fn parse_all(no_proxy: &str) -> Vec<Self> {
        let entries = no_proxy.split([',', ' ', '\t']).filter(|entry| !entry.is_empty());
        entries.map(|entry| Self::parse(&entry.to_ascii_lowercase())).collect()
    }

    fn parse(entry: &str) -> Self {
        let network = entry.split_once('/').and_then(|(address, n_bits)| {
            Some(Self::Network(address.parse().ok()?, n_bits.parse().ok()?))
        });
        let (host, port) = match entry.rsplit_once(':') {
            // An IPv6 address contains colons, so a port follows it only if the address is in brackets.
            Some((host, port)) if entry.parse::<IpAddr>().is_err() => match port.parse() {
                Ok(port) => (host, Some(port)),
                Err(_) => (entry, None),
            },
            _ => (entry, None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let host = host.strip_prefix('*').unwrap_or(host).trim_matches('.');
        match network {
            Some(network) => network,
            None if entry == "*" => Self::All,
            None => Self::Host(host.to_owned(), port),
        }
    }

    /// Whether the entry covers a host at a port. The host is in lower case and has no brackets.
    fn has(&self, host: &str, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Network(network, n_bits) => {
                host.parse().is_ok_and(|address| is_within(address, *network, *n_bits))
            }
            Self::Host(name, at) => {
                let is_below =
                    || host.strip_suffix(name.as_str()).is_some_and(|h| h.ends_with('.'));
                !name.is_empty()
                    && at.is_none_or(|at| at == port)
                    && (host == name.as_str() || is_below())
            }
        }
    }
}

/// Whether the first `n_bits` bits of two addresses are equal.
fn is_within(address: IpAddr, network: IpAddr, n_bits: u8) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let ((address, length), (network, n_max)) = (bits(address), bits(network));
    let differs = (address ^ network).leading_zeros() < u32::from(n_bits);
    length == n_max && n_bits <= n_max && !differs
}

/// Whether the text after the host is a valid port or empty. ureq ignores an invalid port.
fn has_port_or_none(proxy: &ureq::Proxy) -> bool {
    let uri = proxy.uri();
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = uri.host().unwrap_or("");
    !host.is_empty() && (uri.port_u16().is_some() || authority.ends_with(host))
}

/// Removes user name and password from a URL, because error messages must not contain them.
fn without_credentials(url: &str) -> String {
    let Some((before, host)) = url.rsplit_once('@') else { return url.to_owned() };
    match before.split_once("://") {
        Some((scheme, _)) => format!("{scheme}://{host}"),
        None => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Proxies {
        Proxies::read(|name| {
            let value = variables.iter().find(|(variable, _)| *variable == name);
            value.map(|(_, value)| OsString::from(value))
        })
    }

    const CGI: (&str, &str) = ("REQUEST_METHOD", "GET");

    #[test]
    fn scheme_variable_overrides_all_proxy_and_lower_case_overrides_upper_case() {
        let (http, https) = ("http://hub.example/a", "https://hub.example/a");
        let (of_http, of_https) = (("http_proxy", "http://h"), ("https_proxy", "http://s"));
        let of_all = ("all_proxy", "socks5h://a:1080");
        for (variables, url, expected) in [
            (&[of_all, of_http, of_https][..], http, Some("http_proxy=http://h")),
            (&[of_all, of_http, of_https], https, Some("https_proxy=http://s")),
            (&[of_all, of_http], https, Some("all_proxy=socks5h://a:1080")),
            (&[of_http], https, None),
            (&[("ALL_PROXY", "x"), of_https], http, Some("ALL_PROXY=x")),
            (&[("ALL_PROXY", "x"), of_all], http, Some("all_proxy=socks5h://a:1080")),
            (&[("HTTPS_PROXY", "x"), of_https], https, Some("https_proxy=http://s")),
            (&[("HTTPS_PROXY", "x"), of_all], https, Some("HTTPS_PROXY=x")),
            (&[("HTTP_PROXY", "x"), of_all], http, Some("HTTP_PROXY=x")),
            (&[("HTTP_PROXY", "x"), of_all, CGI], http, Some("all_proxy=socks5h://a:1080")),
            (&[("HTTP_PROXY", "x"), CGI], http, None),
            (&[of_http, CGI], http, Some("http_proxy=http://h")),
        ] {
            let proxies = read(variables);
            let described = proxies.of(url).map(Setting::described);
            assert_eq!(described.as_deref(), expected, "{variables:?} for {url}");
        }
    }

    #[test]
    fn rejects_invalid_proxy_without_showing_the_password() {
        let value = |value: &str| {
            let proxies = read(&[("all_proxy", value)]);
            proxies.of("https://hub.example").unwrap().proxy().map(|proxy| proxy.protocol())
        };
        for (url, protocol) in [
            ("127.0.0.1:8118", ureq::ProxyProtocol::Http),
            (" http://user:secret@proxy.example:8118/ ", ureq::ProxyProtocol::Http),
            ("https://proxy.example", ureq::ProxyProtocol::Https),
            ("socks5://proxy.example", ureq::ProxyProtocol::Socks5),
            ("socks5h://user:secret@[::1]:1080", ureq::ProxyProtocol::Socks5h),
            ("socks4://127.0.0.1", ureq::ProxyProtocol::Socks4),
        ] {
            assert_eq!(value(url).unwrap(), protocol, "{url}");
        }
        for (url, shown) in [
            ("socks9://user:sec@ret@127.0.0.1:1080", "`socks9://127.0.0.1:1080`"),
            ("user:sec@ret@127.0.0.1:x", "`127.0.0.1:x`"),
            ("http://", "`http://`"),
            ("a b", "`a b`"),
        ] {
            let message = value(url).unwrap_err().to_string();
            assert!(message.contains(shown) && message.contains("`all_proxy`"), "{message}");
            assert!(!message.contains("sec"), "{message}");
        }
    }

    #[test]
    fn no_proxy_exempts_hosts() {
        for (no_proxy, url, is_direct) in [
            ("hub.example", "https://hub.example/a", true),
            ("hub.example", "https://cdn.HUB.example", true),
            (".hub.example", "https://hub.example", true),
            ("*.hub.example", "https://cdn.hub.example", true),
            ("HUB.example.", "https://hub.example", true),
            ("hub.example", "https://nohub.example", false),
            ("hub.example:443", "https://hub.example", true),
            ("hub.example:443", "http://hub.example", false),
            ("hub.example:8080", "https://hub.example", false),
            ("x.example , hub.example", "https://hub.example", true),
            ("x.example hub.example", "https://hub.example", true),
            ("*", "https://hub.example", true),
            ("10.0.0.0/8,localhost", "http://10.1.2.3:8800", true),
            ("10.0.0.0/8", "http://11.1.2.3", false),
            ("10.0.0.0/0", "http://11.1.2.3", true),
            ("10.0.0.0/0", "http://[::1]", false),
            ("fd00::/8", "http://[fd00::1]:80", true),
            ("::1", "http://[::1]:80", true),
            ("[::1]:80", "http://[::1]", true),
            ("127.0.0.1", "http://127.0.0.1:8800", true),
            ("10.0.0.0/99,.,:,/", "http://10.0.0.0", false),
            ("", "http://10.0.0.0", false),
        ] {
            let proxies = read(&[("all_proxy", "http://p"), ("NO_PROXY", no_proxy)]);
            assert_eq!(proxies.of(url).is_none(), is_direct, "{no_proxy} for {url}");
        }
    }
}
