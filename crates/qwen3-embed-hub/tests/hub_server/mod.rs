//! A test server on loopback with the API of the hub, and a second server for large files, because the hub also stores
//! large files on another server.

pub(crate) mod xet;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

/// The newest commit of every repository.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The test server. Its threads run until the process ends.
#[derive(Clone)]
pub(crate) struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    hub: String,
    cdn: String,
    /// Whether large files are in Xet storage only.
    has_xet: bool,
    repos: Mutex<BTreeMap<String, BTreeMap<String, Vec<u8>>>>,
    requests: Mutex<Vec<Request>>,
    change: Mutex<Box<Change>>,
}

/// Changes a response before it is sent.
type Change = dyn FnMut(&Request, &mut Reply) + Send;

/// A request. The names of its headers are in lower case.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Whether the request was sent to the server for large files.
    pub(crate) to_cdn: bool,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// A response.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// The number of bytes of the body after which the connection is closed.
    pub(crate) cut: Option<usize>,
    /// The wait before the response.
    pub(crate) silence: Duration,
    /// The wait before each kilobyte of the body.
    pub(crate) per_kilobyte: Duration,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl Server {
    /// Starts a hub with these repositories.
    pub(crate) fn start(repos: &[(&str, BTreeMap<String, Vec<u8>>)]) -> Self {
        Self::start_with(repos, false)
    }

    /// Starts a hub that has large files in Xet storage only.
    pub(crate) fn start_with_xet(repos: &[(&str, BTreeMap<String, Vec<u8>>)]) -> Self {
        Self::start_with(repos, true)
    }

    fn start_with(repos: &[(&str, BTreeMap<String, Vec<u8>>)], has_xet: bool) -> Self {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [hub, cdn] = [0, 1].map(|i| format!("http://{}", listeners[i].local_addr().unwrap()));
        let repos = repos.iter().map(|(id, files)| ((*id).to_owned(), files.clone())).collect();
        let shared = Arc::new(Shared {
            hub,
            cdn,
            has_xet,
            repos: Mutex::new(repos),
            requests: Mutex::default(),
            change: Mutex::new(Box::new(|_, _| {})),
        });
        let server = Self { shared };
        for (listener, to_cdn) in listeners.into_iter().zip([false, true]) {
            let server = server.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let server = server.clone();
                    thread::spawn(move || server.serve(stream, to_cdn));
                }
            });
        }
        server
    }

    /// The address of the hub.
    pub(crate) fn url(&self) -> &str {
        &self.shared.hub
    }

    /// Sets a function that changes responses.
    pub(crate) fn change(&self, change: impl FnMut(&Request, &mut Reply) + Send + 'static) {
        *self.shared.change.lock().unwrap() = Box::new(change);
    }

    /// Sends responses unchanged again.
    pub(crate) fn behave(&self) {
        self.change(|_, _| {});
    }

    /// The files of the repositories.
    pub(crate) fn repos(&self) -> MutexGuard<'_, BTreeMap<String, BTreeMap<String, Vec<u8>>>> {
        self.shared.repos.lock().unwrap()
    }

    /// The requests since the last call.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut *self.shared.requests.lock().unwrap())
    }

    fn serve(&self, mut stream: TcpStream, to_cdn: bool) {
        let Some(request) = read_request(&stream, to_cdn) else { return };
        self.shared.requests.lock().unwrap().push(request.clone());
        let mut reply = self.reply(&request);
        (self.shared.change.lock().unwrap())(&request, &mut reply);
        thread::sleep(reply.silence);
        // The client may have closed the connection.
        let _ = send(&mut stream, &request, &reply);
    }

    fn reply(&self, request: &Request) -> Reply {
        let repos = self.shared.repos.lock().unwrap();
        if self.shared.has_xet && xet::is_request(request) {
            let mut files = repos.values().flat_map(BTreeMap::values);
            let file = files.find(|file| request.path.ends_with(&sha256(file)));
            return xet::reply(request, file.map(Vec::as_slice), &self.shared.cdn);
        }
        if request.to_cdn {
            let hash = request.path.trim_start_matches('/');
            let hash = hash.split('?').next().unwrap();
            let mut files = repos.values().flat_map(BTreeMap::values);
            let file = files.find(|file| sha256(file) == hash && !self.shared.has_xet);
            return file.map_or_else(|| Reply::status(404), |file| part_of(file, request));
        }
        if let Some(path) = request.path.strip_prefix("/api/models/") {
            let Some((id, revision)) = path.split_once("/revision/") else {
                return Reply::status(404);
            };
            let Some(files) = repos.get(id) else { return no_repo() };
            if ![COMMIT, "main", "v1", "refs%2Fpr%2F1"].contains(&revision) {
                return Reply::status(404).with("X-Error-Code", "RevisionNotFound");
            }
            let siblings: Vec<_> =
                files.keys().map(|file| serde_json::json!({"rfilename": file})).collect();
            let json = serde_json::json!({"id": id, "sha": COMMIT, "siblings": siblings});
            return Reply { body: json.to_string().into(), ..Reply::status(200) };
        }
        // The hub redirects requests for small files to this path.
        let (path, is_inner) = match request.path.strip_prefix("/api/resolve-cache/models") {
            Some(path) => (path, true),
            None => (request.path.as_str(), false),
        };
        let mut parts = path.trim_start_matches('/').splitn(5, '/');
        let [owner, name, kind, revision, file] = [(); 5].map(|()| parts.next().unwrap_or(""));
        let Some(files) = repos.get(&format!("{owner}/{name}")) else { return no_repo() };
        if kind != "resolve" || ![COMMIT, "main"].contains(&revision) {
            return Reply::status(404).with("X-Error-Code", "RevisionNotFound");
        }
        let Some(contents) = files.get(&file.replace("%20", " ")) else {
            return Reply::status(404)
                .with("X-Error-Code", "EntryNotFound")
                .with("X-Repo-Commit", COMMIT);
        };
        let hash = sha256(contents);
        if is_large(file) {
            let redirect = Reply::status(302);
            let redirect = match self.shared.has_xet {
                true => redirect.with("X-Xet-Hash", hash.as_str()),
                false => redirect,
            };
            return redirect
                .with("Location", format!("{}/{hash}?Signature=s", self.shared.cdn))
                .with("X-Repo-Commit", COMMIT)
                .with("ETag", format!("\"{}\"", &hash[..32]))
                .with("X-Linked-ETag", format!("\"{hash}\""))
                .with("X-Linked-Size", contents.len().to_string());
        }
        if !is_inner {
            return Reply::status(307)
                .with("Location", format!("/api/resolve-cache/models{path}"))
                .with("X-Repo-Commit", COMMIT);
        }
        part_of(contents, request)
            .with("X-Repo-Commit", COMMIT)
            .with("ETag", format!("\"{}\"", &hash[..40]))
    }
}

/// The files of a model fixture, and other files.
pub(crate) fn repository(fixture: &str, others: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(fixture);
    let mut files = BTreeMap::new();
    let mut folders = vec![(dir, String::new())];
    while let Some((dir, path)) = folders.pop() {
        for entry in dir.read_dir().unwrap().map(Result::unwrap) {
            let name = path.clone() + entry.file_name().to_str().unwrap();
            if entry.path().is_dir() {
                folders.push((entry.path(), name + "/"));
            } else if name != "golden.json" {
                files.insert(name, std::fs::read(entry.path()).unwrap());
            }
        }
    }
    let others = others.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()));
    files.extend(others);
    files
}

/// The SHA-256 in hexadecimal, which is the ETag of a large file.
pub(crate) fn sha256(contents: &[u8]) -> String {
    Sha256::digest(contents).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the file is stored on the server for large files.
fn is_large(file: &str) -> bool {
    [".safetensors", ".gguf", ".bin"].iter().any(|end| file.ends_with(end))
}

fn no_repo() -> Reply {
    // Without a token, the hub responds with 401 instead of 404, so that a client cannot find out whether a private
    // repository exists.
    Reply::status(401)
        .with("X-Error-Code", "RepoNotFound")
        .with("X-Error-Message", "Repository not found")
}

/// The requested range of a file.
fn part_of(file: &[u8], request: &Request) -> Reply {
    let Some(range) = request.header("range") else {
        return Reply { body: file.to_vec(), ..Reply::status(200) };
    };
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let last = last.parse().map_or(file.len(), |last: usize| (last + 1).min(file.len()));
    if first >= file.len() {
        return Reply::status(416).with("Content-Range", format!("bytes */{}", file.len()));
    }
    Reply { body: file[first..last].to_vec(), ..Reply::status(206) }
        .with("Content-Range", format!("bytes {first}-{}/{}", last - 1, file.len()))
}

fn read_request(stream: &TcpStream, to_cdn: bool) -> Option<Request> {
    let mut lines = BufReader::new(stream.take(64 << 10)).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Some(Request { method, path, to_cdn, headers })
}

fn send(stream: &mut TcpStream, request: &Request, reply: &Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(name, _)| *name == "Content-Length") {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    let body = &reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())];
    for kilobyte in body.chunks(1024) {
        thread::sleep(reply.per_kilobyte);
        stream.write_all(kilobyte)?;
    }
    Ok(())
}
