//! The part of the Xet protocol that is needed to download a whole file: the access token, the locations of the file's
//! chunks, and the chunks, without compression. This server uses the SHA-256 of a file as its hash in Xet storage,
//! because clients do not verify this hash.

use serde_json::json;

use super::{Reply, Request, part_of};

/// Number of bytes of a chunk. The protocol allows at most 128 KiB.
const CHUNK: usize = 100_000;

/// The token for Xet storage, which is not the hub's token.
pub(crate) const TOKEN: &str = "xet_token";

/// Whether a request belongs to the Xet protocol.
pub(super) fn is_request(request: &Request) -> bool {
    let paths = ["/xet-read-token/", "/reconstructions/", "/xorbs/", "/telemetry"];
    paths.iter().any(|path| request.path.contains(path))
}

/// The response to a request about `file`. The token comes from the hub. The other responses come from the server for
/// large files.
pub(super) fn reply(request: &Request, file: Option<&[u8]>, cdn: &str) -> Reply {
    if request.path.contains("/xet-read-token/") {
        let token = json!({"accessToken": TOKEN, "exp": 4_000_000_000u64, "casUrl": cdn});
        return Reply { body: token.to_string().into(), ..Reply::status(200) };
    }
    let Some(file) = file else { return Reply::status(404) };
    if request.path.contains("/xorbs/") {
        return part_of(&chunks(file), request);
    }
    if part_of(file, request).status == 416 {
        return Reply::status(416);
    }
    let hash = request.path.rsplit('/').next().unwrap();
    let range = json!({"start": 0, "end": file.len().div_ceil(CHUNK)});
    let bytes = json!({"start": 0, "end": chunks(file).len() - 1});
    let fetch = json!({"url": format!("{cdn}/xorbs/{hash}"), "ranges": [{"chunks": range, "bytes": bytes}]});
    let reconstruction = json!({
        "offset_into_first_range": 0,
        "terms": [{"hash": hash, "unpacked_length": file.len(), "range": range}],
        "xorbs": {hash: [fetch]},
    });
    Reply { body: reconstruction.to_string().into(), ..Reply::status(200) }
}

/// The chunks of a file, each after its header of eight bytes.
fn chunks(file: &[u8]) -> Vec<u8> {
    let chunk = |chunk: &[u8]| {
        let length = u32::try_from(chunk.len()).unwrap().to_le_bytes();
        let (version, no_compression) = (0, 0);
        let header = [&[version], &length[..3], &[no_compression], &length[..3]].concat();
        [&header, chunk].concat()
    };
    file.chunks(CHUNK).flat_map(chunk).collect()
}
