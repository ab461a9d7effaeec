use std::io::{self, Read};

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, header};
use flate2::read::MultiGzDecoder;

use crate::error::ApiError;

/// The compression of a request body, from the header `Content-Encoding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentEncoding {
    /// The body is not compressed.
    Identity,
    /// gzip, with one or more members.
    Gzip,
    /// Zstandard, with one or more frames.
    Zstd,
}

impl ContentEncoding {
    /// Reads the headers of a request.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let values = headers.get_all(header::CONTENT_ENCODING).iter();
        let sent = values.map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b", "[..]);
        let sent = String::from_utf8_lossy(&sent);
        let names = sent.split(',').map(|name| name.trim().to_ascii_lowercase());
        let mut names = names.filter(|name| !name.is_empty() && name != "identity");
        match (names.next().as_deref(), names.next()) {
            (None, _) => Ok(Self::Identity),
            (Some("gzip" | "x-gzip"), None) => Ok(Self::Gzip),
            (Some("zstd"), None) => Ok(Self::Zstd),
            _ => Err(ApiError::unsupported_encoding(&sent)),
        }
    }

    /// Decompresses a body to at most `limit` bytes. Decompression stops one byte after the limit, so a small body
    /// cannot fill the memory.
    pub(crate) fn decode(self, body: Bytes, limit: usize) -> Result<Bytes, ApiError> {
        let name = match self {
            Self::Identity => return Ok(body),
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        };
        let mut decoded = Vec::new();
        let read = self.read(&body, limit, &mut decoded);
        if decoded.len() > limit {
            return Err(ApiError::too_large("the decompressed body", limit));
        }
        read.map_err(|error| {
            let message = format!(
                "the header `Content-Encoding` is `{name}`, but the body is incomplete or is not valid {name}: {error}"
            );
            ApiError::invalid(message)
        })?;
        Ok(decoded.into())
    }

    /// Decompresses at most one byte more than `limit`.
    fn read(self, body: &[u8], limit: usize, decoded: &mut Vec<u8>) -> io::Result<usize> {
        let n = (limit as u64).saturating_add(1);
        match self {
            Self::Identity => body.take(n).read_to_end(decoded),
            Self::Gzip => MultiGzDecoder::new(body).take(n).read_to_end(decoded),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(body)?;
                // The decoder allocates a window whose size is in the header of the frame. Windows up to 8 MiB (2^23 bytes)
                // are accepted, because RFC 9659 requires this. Larger windows are accepted up to the next power of two
                // above the payload limit, but not above 128 MiB (2^27 bytes).
                let window_log = (usize::BITS - limit.leading_zeros()).clamp(23, 27);
                decoder.window_log_max(window_log)?;
                decoder.take(n).read_to_end(decoded)
            }
        }
    }
}
