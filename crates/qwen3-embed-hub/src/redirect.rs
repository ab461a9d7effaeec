//! The URLs of redirects, and the origins of URLs.

use ureq::http::Uri;

/// The scheme, host and port of a URL. The token is sent only to the hub's own origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    /// The origin of an HTTP or HTTPS URL. `None` for other texts.
    pub(crate) fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme))?;
        let default = if scheme == "https" { 443 } else { 80 };
        Some(Self {
            scheme: scheme.to_owned(),
            host: uri.host()?.to_ascii_lowercase(),
            port: uri.port_u16().unwrap_or(default),
        })
    }
}

/// The URL that the header `Location` of a response from `url` refers to.
pub(crate) fn resolve(url: &str, location: &str) -> String {
    let scheme_end = url.find("://").map_or(0, |at| at + 3);
    let path = url[scheme_end..].find('/').map_or(url.len(), |at| scheme_end + at);
    if location.contains("://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{}{location}", &url[..scheme_end.saturating_sub(2)])
    } else if location.starts_with('/') {
        format!("{}{location}", &url[..path])
    } else {
        let folder = url[path..].rfind('/').map_or(url.len(), |at| path + at);
        format!("{}/{location}", &url[..folder])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_absolute_and_relative_locations() {
        let url = "https://hub.example:8080/a/b?c=/d";
        let cases = [
            ("http://x.example/y", "http://x.example/y"),
            ("//x.example/y", "https://x.example/y"),
            ("/y?z", "https://hub.example:8080/y?z"),
        ];
        for (location, expected) in cases {
            assert_eq!(resolve(url, location), expected);
        }
        assert_eq!(resolve("http://h/a/b", "c"), "http://h/a/c");
        assert_eq!(resolve("http://h", "/c"), "http://h/c");
    }

    #[test]
    fn origins_differ_by_scheme_host_and_port() {
        let home = Origin::of("https://hub.example/a");
        assert!(home.is_some());
        assert_eq!(Origin::of("https://HUB.example:443/b"), home);
        for url in ["http://hub.example", "https://hub.example:444", "https://x.hub.example"] {
            assert_ne!(Origin::of(url), home);
        }
        for url in ["", "hub.example", "ftp://hub.example", "/a"] {
            assert_eq!(Origin::of(url), None, "{url}");
        }
    }
}
