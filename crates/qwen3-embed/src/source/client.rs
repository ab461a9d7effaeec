//! Requests to the hub: redirects, what a status means, and which failures pass.

use std::fs;
use std::io::Read;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::cache::is_commit;
use super::error::{Failure, HubProblem, broken, unusable};
use super::hub::Hub;
use super::proxy::Setting;

/// What is escaped in one part of a URL's path.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What is escaped in a URL's path.
const PATH: &AsciiSet = &PART.remove(b'/');

/// Hops from one address to the next before an answer must come.
const MAX_REDIRECTS: usize = 10;

/// No listing of a repository is longer than this, in bytes.
const MAX_LISTING: u64 = 64 << 20;

/// The longest that the hub is obeyed when it says how long to wait.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Asks the hub.
pub(super) struct Client<'a> {
    hub: &'a Hub,
    agent: Agent,
}

/// A commit, and the files of the repository at it.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// What the hub says of a file before it sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Names the file's contents, and the blob in the cache that holds them.
    pub(super) etag: String,
    pub(super) size: u64,
    /// Whether the etag is the SHA-256 of the contents.
    pub(super) is_sha256: bool,
}

/// What responses on the way to a file say of it: on each host of a redirect, there may be more.
#[derive(Debug, Default)]
struct Found {
    /// The first `X-Linked-ETag`. It comes before an `ETag`, which may be that of another form of the file.
    linked_etag: Option<String>,
    /// The last `ETag`.
    etag: Option<String>,
    size: Option<u64>,
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub) -> Result<Self, HubProblem> {
        let timeout = Some(hub.timeout);
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("qwen3-embed/", env!("CARGO_PKG_VERSION")))
            // Each request has its own.
            .proxy(None)
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_recv_response(timeout)
            .timeout_per_read(timeout);
        if let Some(path) = &hub.certificates {
            let pem =
                fs::read(path).map_err(|source| HubProblem::Io { path: path.clone(), source })?;
            let certificates: Vec<_> = parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            let roots = RootCerts::new_with_certs(&certificates);
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Ok(Self { hub, agent: config.build().new_agent() })
    }

    /// The commit that a revision is, and its files.
    pub(super) fn listing(&self, repo: &str, revision: &str) -> Result<Listing, Failure> {
        #[derive(Deserialize)]
        struct Json {
            sha: String,
            #[serde(default)]
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let url = self.listing_url(repo, revision);
        let answer = self.send("GET", &url, None, |_, _| false)?;
        let answer = self.checked(answer, repo, revision)?;
        let (status, content_type) = (answer.status(), header(answer.headers(), "content-type"));
        let described = format!("status {status}, content type `{}`", content_type.unwrap_or(""));
        let mut json = Vec::new();
        let mut body = answer.into_body().into_reader().take(MAX_LISTING);
        body.read_to_end(&mut json).map_err(broken)?;
        let json: Json = serde_json::from_slice(&json)
            .map_err(|error| unusable(format!("{described}, no list of files: {error}")))?;
        if !is_commit(&json.sha) {
            return Err(unusable(format!("`{}` is no commit", json.sha)));
        }
        let files = json.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        Ok(Listing { commit: json.sha, files })
    }

    /// What the hub says of a file at a commit.
    pub(super) fn metadata(
        &self,
        repo: &str,
        commit: &str,
        file: &str,
    ) -> Result<Metadata, Failure> {
        let mut found = Found::default();
        let url = self.file_url(repo, commit, file);
        let mut is_known = false;
        let answer = self.send("HEAD", &url, None, |answer, leaves_origin| {
            found.look_at(answer);
            // Hosts of large files need not answer `HEAD`: a hub that has said all of it is the last that is asked.
            is_known = leaves_origin && found.is_enough();
            is_known
        })?;
        if !is_known {
            self.checked(answer, repo, commit)?;
        }
        found.metadata()
    }

    /// The contents of a file at a commit, from byte `start` on. The first byte that comes, which is 0
    /// if the server cannot begin elsewhere, and a reader of the rest.
    pub(super) fn contents(
        &self,
        repo: &str,
        commit: &str,
        file: &str,
        start: u64,
    ) -> Result<(u64, impl Read + use<>), Failure> {
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let url = self.file_url(repo, commit, file);
        let answer = self.send("GET", &url, range.as_deref(), |_, _| false)?;
        if answer.status() == 416 && start > 0 {
            return self.contents(repo, commit, file, 0);
        }
        let answer = self.checked(answer, repo, commit)?;
        let range = header(answer.headers(), "content-range");
        let first = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-'));
        let first = match (answer.status().as_u16(), first) {
            (206, Some((first, _))) => first.parse().ok().filter(|first| *first <= start),
            (206, None) => None,
            _ => Some(0),
        };
        let first = first.ok_or_else(|| unusable("another part of the file than asked for"))?;
        Ok((first, answer.into_body().into_reader()))
    }

    /// The first bytes of a file at a commit: `n` of them, or all.
    pub(super) fn beginning(
        &self,
        repo: &str,
        commit: &str,
        file: &str,
        n: u64,
    ) -> Result<Vec<u8>, Failure> {
        let range = format!("bytes=0-{}", n.max(1) - 1);
        let url = self.file_url(repo, commit, file);
        let answer = self.send("GET", &url, Some(&range), |_, _| false)?;
        let answer = self.checked(answer, repo, commit)?;
        let mut bytes = Vec::new();
        answer.into_body().into_reader().take(n).read_to_end(&mut bytes).map_err(broken)?;
        Ok(bytes)
    }

    /// Where the list of a repository's files is.
    pub(super) fn listing_url(&self, repo: &str, revision: &str) -> String {
        let revision = utf8_percent_encode(revision, PART);
        format!("{}/api/models/{repo}/revision/{revision}", self.hub.endpoint)
    }

    /// Where a file is.
    pub(super) fn file_url(&self, repo: &str, commit: &str, file: &str) -> String {
        let file = utf8_percent_encode(file, PATH);
        format!("{}/{repo}/resolve/{commit}/{file}", self.hub.endpoint)
    }

    /// Sends a request, and again after each redirect. The token goes to the hub and to no other host.
    ///
    /// `is_enough` sees every response, and whether it is a redirect to another origin than the hub's. A redirect of
    /// which it says that it is enough is not followed.
    fn send(
        &self,
        method: &str,
        url: &str,
        range: Option<&str>,
        mut is_enough: impl FnMut(&Response<Body>, bool) -> bool,
    ) -> Result<Response<Body>, Failure> {
        let home = origin(url).ok_or_else(|| unusable(format!("`{url}` is no URL")))?;
        let mut url = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let at_home = origin(&url).as_ref() == Some(&home);
            let mut request = match method {
                "HEAD" => self.agent.head(&url),
                _ => self.agent.get(&url),
            };
            request = request.header("accept-encoding", "identity");
            if let Some(range) = range {
                request = request.header("range", range);
            }
            if let Some(token) = self.hub.token.as_ref().filter(|_| at_home) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let setting = self.hub.proxies.of(&url);
            let proxy = setting.map(Setting::proxy).transpose().map_err(Failure::Final)?;
            let request = request.config().proxy(proxy.cloned()).build();
            let answer = request.call();
            let answer = answer.map_err(|error| classified(error, setting))?;
            let location = header(answer.headers(), "location");
            let Some(location) = location.filter(|_| answer.status().is_redirection()) else {
                is_enough(&answer, false);
                return Ok(answer);
            };
            let next = joined(&url, location);
            if is_enough(&answer, origin(&next).as_ref() != Some(&home)) {
                return Ok(answer);
            }
            if url.starts_with("https:") && !next.starts_with("https:") {
                return Err(unusable("a redirect from https to elsewhere"));
            }
            url = next;
        }
        Err(unusable("too many redirects"))
    }

    /// The answer, unless its status is an error.
    fn checked(
        &self,
        answer: Response<Body>,
        repo: &str,
        revision: &str,
    ) -> Result<Response<Body>, Failure> {
        let status = answer.status().as_u16();
        if answer.status().is_success() {
            return Ok(answer);
        }
        let headers = answer.headers();
        let reason = answer.status().canonical_reason().unwrap_or("no reason given");
        let message = header(headers, "x-error-message").unwrap_or(reason).to_owned();
        let problem = match (status, header(headers, "x-error-code")) {
            (_, Some("GatedRepo")) => {
                let page = format!("{}/{repo}", self.hub.endpoint);
                HubProblem::Gated { page, status, message }
            }
            (_, Some("RevisionNotFound")) => {
                HubProblem::NoSuchRevision { revision: revision.to_owned(), status, message }
            }
            (_, Some("EntryNotFound")) => HubProblem::NoSuchFile,
            (401, _) if message.contains("Invalid credentials") => {
                HubProblem::BadToken { status, message }
            }
            (401 | 404, _) => HubProblem::NoSuchModel { status, message },
            (403, _) => HubProblem::Forbidden { status, message },
            (408 | 429 | 500 | 502 | 503 | 504, _) => {
                let seconds = header(headers, "retry-after").and_then(|wait| wait.parse().ok());
                let wait = seconds.map(|s| Duration::from_secs(s).min(MAX_WAIT));
                return Err(Failure::Passing(HubProblem::Status { status, message }, wait));
            }
            (status, _) => HubProblem::Status { status, message },
        };
        Err(Failure::Final(problem))
    }
}

impl Found {
    fn look_at(&mut self, answer: &Response<Body>) {
        let headers = answer.headers();
        let etag = |name| {
            let etag = header(headers, name)?;
            Some(etag.trim_start_matches("W/").trim_matches('"').to_owned())
        };
        self.linked_etag = self.linked_etag.take().or_else(|| etag("x-linked-etag"));
        self.etag = etag("etag").or(self.etag.take());
        // The length of a redirect's body says nothing of the file.
        let length = header(headers, "content-length").filter(|_| answer.status().is_success());
        let size = header(headers, "x-linked-size").or(length);
        self.size = self.size.or_else(|| size?.parse().ok());
    }

    fn is_enough(&self) -> bool {
        self.size.is_some() && (self.linked_etag.is_some() || self.etag.is_some())
    }

    fn metadata(self) -> Result<Metadata, Failure> {
        // It becomes the name of a file.
        let is_name = |etag: &String| {
            !etag.is_empty()
                && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        let is_linked = self.linked_etag.is_some();
        let etag = self.linked_etag.or(self.etag).filter(is_name);
        let etag = etag.ok_or_else(|| unusable("a file without an ETag"))?;
        let size = self.size.ok_or_else(|| unusable("a file without a size"))?;
        let is_hash = etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
        Ok(Metadata { is_sha256: is_linked && is_hash, etag, size })
    }
}

/// What it means that a request, through the proxy of `setting` if there is one, was not answered.
fn classified(error: ureq::Error, setting: Option<&Setting>) -> Failure {
    let proxy = setting.map(Setting::described);
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            unusable("an address or a token with characters that cannot be sent")
        }
        // Nobody answers to the name, or somebody who is not the hub, or the proxy does not want to: not at
        // the next attempt either.
        ureq::Error::HostNotFound
        | ureq::Error::ConnectProxyFailed(_)
        | ureq::Error::Tls(_)
        | ureq::Error::Rustls(_) => {
            Failure::Final(HubProblem::Unreachable { proxy, source: Box::new(error) })
        }
        error => {
            let source = Box::new(error.into_io());
            Failure::Passing(HubProblem::Unreachable { proxy, source }, None)
        }
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme))?;
    let default = if scheme == "https" { 443 } else { 80 };
    let port = uri.port_u16().unwrap_or(default);
    Some((scheme.to_owned(), uri.host()?.to_ascii_lowercase(), port))
}

/// The URL that a redirect from `url` leads to.
fn joined(url: &str, location: &str) -> String {
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
    fn redirects_lead_where_they_say() {
        let url = "https://hub.example:8080/a/b?c=/d";
        let cases = [
            ("http://x.example/y", "http://x.example/y"),
            ("//x.example/y", "https://x.example/y"),
            ("/y?z", "https://hub.example:8080/y?z"),
        ];
        for (location, expected) in cases {
            assert_eq!(joined(url, location), expected);
        }
        assert_eq!(joined("http://h/a/b", "c"), "http://h/a/c");
        assert_eq!(joined("http://h", "/c"), "http://h/c");
    }

    #[test]
    fn another_port_scheme_or_host_is_another_origin() {
        let home = origin("https://hub.example/a");
        assert!(home.is_some());
        assert_eq!(origin("https://HUB.example:443/b"), home);
        for url in ["http://hub.example", "https://hub.example:444", "https://x.hub.example"] {
            assert_ne!(origin(url), home);
        }
        for url in ["", "hub.example", "ftp://hub.example", "/a"] {
            assert_eq!(origin(url), None, "{url}");
        }
    }
}
