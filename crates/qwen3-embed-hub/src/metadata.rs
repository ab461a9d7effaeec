use ureq::Body;
use ureq::http::{HeaderMap, Response};

use crate::error::{Failure, unusable};

/// The properties of a file that the hub announces before the file is downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// Identifies the contents of the file. It is the name of the file's blob in the cache.
    pub(crate) etag: String,
    /// The size of the file in bytes.
    pub(crate) size: u64,
    /// Whether the ETag is the SHA-256 of the contents.
    pub(crate) is_sha256: bool,
    /// Whether the file is in Xet storage.
    pub(crate) is_xet: bool,
}

/// Collects the announced properties of a file from the headers of several responses. If a request is redirected,
/// several hosts respond, and each host may announce some of the properties.
#[derive(Debug, Default)]
pub(crate) struct Announced {
    /// The first `X-Linked-ETag`. It takes precedence over `ETag`, which may belong to a pointer file.
    linked_etag: Option<String>,
    /// The last `ETag`.
    etag: Option<String>,
    size: Option<u64>,
    is_xet: bool,
}

impl Announced {
    /// Adds the headers of a response. `is_hub` tells whether the hub itself has sent the response.
    pub(crate) fn add(&mut self, response: &Response<Body>, is_hub: bool) {
        let headers = response.headers();
        let etag = |name| {
            let etag = header(headers, name)?;
            Some(etag.trim_start_matches("W/").trim_matches('"').to_owned())
        };
        self.linked_etag = self.linked_etag.take().or_else(|| etag("x-linked-etag"));
        self.etag = etag("etag").or(self.etag.take());
        // The content length of a redirect is the length of the redirect's own body, not of the file.
        let length = header(headers, "content-length").filter(|_| response.status().is_success());
        let size = header(headers, "x-linked-size").or(length);
        self.size = self.size.or_else(|| size?.parse().ok());
        // Only responses of the hub count, because hf-hub ignores this header in responses of other hosts.
        self.is_xet |= is_hub && headers.contains_key("x-xet-hash");
    }

    /// Whether both the ETag and the size are known.
    pub(crate) fn is_complete(&self) -> bool {
        self.size.is_some() && (self.linked_etag.is_some() || self.etag.is_some())
    }

    /// The metadata, or an error if no response announced the ETag or the size.
    pub(crate) fn metadata(self) -> Result<Metadata, Failure> {
        // The ETag is used as a file name, so only safe characters are accepted.
        let is_name = |etag: &String| {
            !etag.is_empty()
                && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        let is_linked = self.linked_etag.is_some();
        let etag = self.linked_etag.or(self.etag).filter(is_name);
        let etag = etag.ok_or_else(|| unusable("the file has no ETag"))?;
        let size = self.size.ok_or_else(|| unusable("the file has no size"))?;
        let is_hash = etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
        Ok(Metadata { is_sha256: is_linked && is_hash, etag, size, is_xet: self.is_xet })
    }
}

/// The value of a header, if it is text.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
