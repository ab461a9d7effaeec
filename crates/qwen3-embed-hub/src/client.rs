//! HTTP requests to the hub: listings of commits, metadata of files, and their contents.

use std::fs;
use std::io::Read;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::http::Response;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::error::{Failure, HubProblem, broken, unusable};
use crate::hub::Hub;
use crate::id::is_commit;
use crate::metadata::{Announced, Metadata, header};
use crate::proxy::Setting;
use crate::redirect::{Origin, resolve};
use crate::refusal::Refusal;

/// The characters that are escaped in one segment of a URL's path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The characters that are escaped in a URL's path.
const PATH: &AsciiSet = &SEGMENT.remove(b'/');

/// Maximum number of redirects of one request.
const MAX_REDIRECTS: usize = 10;

/// Maximum number of bytes that are read of a listing.
const MAX_LISTING: u64 = 64 << 20;

/// Sends requests to the hub.
pub(crate) struct Client<'a> {
    hub: &'a Hub,
    agent: Agent,
}

/// A commit and the paths of its files.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    pub(crate) files: Vec<String>,
}

impl<'a> Client<'a> {
    /// Creates a client with the timeouts and certificates of the settings.
    pub(crate) fn new(hub: &'a Hub) -> Result<Self, HubProblem> {
        let timeout = Some(hub.timeout);
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("qwen3-embed/", env!("CARGO_PKG_VERSION")))
            // The proxy is chosen for each request.
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

    /// The newest commit of a revision, and its files.
    pub(crate) fn listing(&self, repo: &str, revision: &str) -> Result<Listing, Failure> {
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
        let response = self.send("GET", &url, None, |_, _| false)?;
        let response = self.checked(response, repo, revision)?;
        let content_type = header(response.headers(), "content-type").unwrap_or("");
        let described = format!("status {}, content type `{content_type}`", response.status());
        let mut json = Vec::new();
        let mut body = response.into_body().into_reader().take(MAX_LISTING);
        body.read_to_end(&mut json).map_err(broken)?;
        let json: Json = serde_json::from_slice(&json)
            .map_err(|error| unusable(format!("{described}, not a list of files: {error}")))?;
        if !is_commit(&json.sha) {
            return Err(unusable(format!("`{}` is not a commit hash", json.sha)));
        }
        let files = json.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        Ok(Listing { commit: json.sha, files })
    }

    /// The ETag and the size of a file at a commit.
    pub(crate) fn metadata(
        &self,
        repo: &str,
        commit: &str,
        file: &str,
    ) -> Result<Metadata, Failure> {
        let mut announced = Announced::default();
        let url = self.file_url(repo, commit, file);
        let (mut is_hub, mut is_known) = (true, false);
        let response = self.send("HEAD", &url, None, |response, leaves_origin| {
            announced.add(response, is_hub);
            is_hub &= !leaves_origin;
            // If the hub has announced the ETag and the size, a redirect to the storage of large files is not followed,
            // because the storage may not support `HEAD`.
            is_known = leaves_origin && announced.is_complete();
            is_known
        })?;
        if !is_known {
            self.checked(response, repo, commit)?;
        }
        announced.metadata()
    }

    /// Requests the contents of a file at a commit, beginning with byte `start`.
    ///
    /// Returns the offset of the first byte that the server sends, and a reader for the bytes. The offset is 0 if the
    /// server does not support ranges.
    pub(crate) fn contents(
        &self,
        repo: &str,
        commit: &str,
        file: &str,
        start: u64,
    ) -> Result<(u64, impl Read + use<>), Failure> {
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let url = self.file_url(repo, commit, file);
        let response = self.send("GET", &url, range.as_deref(), |_, _| false)?;
        if response.status() == 416 && start > 0 {
            return self.contents(repo, commit, file, 0);
        }
        let response = self.checked(response, repo, commit)?;
        let range = header(response.headers(), "content-range");
        let first = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-'));
        let first = match (response.status().as_u16(), first) {
            (206, Some((first, _))) => first.parse().ok().filter(|first| *first <= start),
            (206, None) => None,
            _ => Some(0),
        };
        let first = first.ok_or_else(|| unusable("another range of the file than requested"))?;
        Ok((first, response.into_body().into_reader()))
    }

    /// The first `n` bytes of a file at a commit, or all bytes of a shorter file.
    pub(crate) fn beginning(
        &self,
        repo: &str,
        commit: &str,
        file: &str,
        n: u64,
    ) -> Result<Vec<u8>, Failure> {
        let range = format!("bytes=0-{}", n.max(1) - 1);
        let url = self.file_url(repo, commit, file);
        let response = self.send("GET", &url, Some(&range), |_, _| false)?;
        let response = self.checked(response, repo, commit)?;
        let mut bytes = Vec::new();
        response.into_body().into_reader().take(n).read_to_end(&mut bytes).map_err(broken)?;
        Ok(bytes)
    }

    /// The URL of the listing of a repository at a revision.
    pub(crate) fn listing_url(&self, repo: &str, revision: &str) -> String {
        let revision = utf8_percent_encode(revision, SEGMENT);
        format!("{}/api/models/{repo}/revision/{revision}", self.hub.endpoint)
    }

    /// The URL of a file at a commit.
    pub(crate) fn file_url(&self, repo: &str, commit: &str, file: &str) -> String {
        let file = utf8_percent_encode(file, PATH);
        format!("{}/{repo}/resolve/{commit}/{file}", self.hub.endpoint)
    }

    /// Sends a request and follows redirects. The token is sent only to the hub's own origin.
    ///
    /// `is_enough` is called with every response, and with a flag that says whether the response redirects away from
    /// the hub's origin. If `is_enough` returns true for a redirect, the redirect is not followed.
    fn send(
        &self,
        method: &str,
        url: &str,
        range: Option<&str>,
        mut is_enough: impl FnMut(&Response<Body>, bool) -> bool,
    ) -> Result<Response<Body>, Failure> {
        let home = Origin::of(url).ok_or_else(|| unusable(format!("`{url}` is not a URL")))?;
        let mut url = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let is_home = Origin::of(&url).as_ref() == Some(&home);
            let mut request = match method {
                "HEAD" => self.agent.head(&url),
                _ => self.agent.get(&url),
            };
            request = request.header("accept-encoding", "identity");
            if let Some(range) = range {
                request = request.header("range", range);
            }
            if let Some(token) = self.hub.token.as_ref().filter(|_| is_home) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let setting = self.hub.proxies.of(&url);
            let proxy = setting.map(Setting::proxy).transpose().map_err(Failure::Permanent)?;
            let request = request.config().proxy(proxy.cloned()).build();
            let response = request.call().map_err(|error| failure(error, setting))?;
            let location = header(response.headers(), "location");
            let Some(location) = location.filter(|_| response.status().is_redirection()) else {
                is_enough(&response, false);
                return Ok(response);
            };
            let next = resolve(&url, location);
            if is_enough(&response, Origin::of(&next).as_ref() != Some(&home)) {
                return Ok(response);
            }
            if url.starts_with("https:") && !next.starts_with("https:") {
                return Err(unusable("a redirect from https to another scheme"));
            }
            url = next;
        }
        Err(unusable("too many redirects"))
    }

    /// Returns the response if its status is a success.
    fn checked(
        &self,
        response: Response<Body>,
        repo: &str,
        revision: &str,
    ) -> Result<Response<Body>, Failure> {
        if response.status().is_success() {
            return Ok(response);
        }
        let headers = response.headers();
        let reason = response.status().canonical_reason().unwrap_or("no reason given");
        let seconds = header(headers, "retry-after").and_then(|wait| wait.parse().ok());
        let refusal = Refusal {
            status: response.status().as_u16(),
            code: header(headers, "x-error-code"),
            message: header(headers, "x-error-message").unwrap_or(reason).to_owned(),
            retry_after: seconds.map(Duration::from_secs),
        };
        Err(refusal.failure(self.hub, repo, revision))
    }
}

/// The failure of a request without a response. `setting` is the proxy that the request was sent through.
fn failure(error: ureq::Error, setting: Option<&Setting>) -> Failure {
    let proxy = setting.map(Setting::described);
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            unusable("the URL or the token contains characters that cannot be sent")
        }
        // The host does not exist, the TLS connection cannot be trusted, or the proxy refuses the connection. Another
        // attempt would fail too.
        ureq::Error::HostNotFound
        | ureq::Error::ConnectProxyFailed(_)
        | ureq::Error::Tls(_)
        | ureq::Error::Rustls(_) => {
            Failure::Permanent(HubProblem::Unreachable { proxy, source: Box::new(error) })
        }
        error => {
            let source = Box::new(error.into_io());
            Failure::Transient(HubProblem::Unreachable { proxy, source }, None)
        }
    }
}
