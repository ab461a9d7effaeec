//! The server on loopback sockets: slow, silent and disconnected clients, and shutdown.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use qwen3_embed::{Embedder, ServiceOptions};
use qwen3_embed_server::{
    AppState, Models, Readiness, ServeOptions, ServerOptions, Unfinished, serve,
};
use qwen3_embed_testing::fixtures;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// A timeout that expires only if the expected event does not happen.
const LONG: Duration = Duration::from_secs(60);

struct Server {
    address: SocketAddr,
    state: AppState,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), Unfinished>>,
}

async fn start(options: ServeOptions, service: ServiceOptions) -> Server {
    let embedder = Embedder::builder(fixtures::model("wide")).build().unwrap();
    let state = AppState::new(ServerOptions::default());
    let models = Models { embedder: Some(("wide".into(), embedder)), reranker: None };
    state.start(models, service).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let ended = tokio::spawn(serve(listener, state.clone(), options, async {
        let _ = stopped.await;
    }));
    Server { address, state, stop, ended }
}

/// A request for the embeddings of `n` texts.
fn request(n: usize, connection: &str) -> String {
    let texts: Vec<String> = (0..n).map(|i| format!("text {i} of a request")).collect();
    request_for(&texts, connection)
}

fn request_for(texts: &[String], connection: &str) -> String {
    let texts: Vec<String> = texts.iter().map(|text| format!("\"{text}\"")).collect();
    let body = format!("{{\"input\":[{}],\"encoding_format\":\"base64\"}}", texts.join(","));
    let length = body.len();
    format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: a\r\nconnection: {connection}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// Sends a request on a new connection and reads the whole response.
async fn ask(address: SocketAddr, n: usize) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request(n, "close").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Waits until `holds` returns true.
async fn until(holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, wait).await.unwrap();
}

/// Reads until the server closes the connection.
async fn closed(mut stream: TcpStream) -> String {
    let mut rest = String::new();
    timeout(LONG, stream.read_to_string(&mut rest)).await.unwrap().unwrap();
    rest
}

#[tokio::test]
async fn finishes_started_request_after_shutdown_begins() {
    // Each text has its own batch, so that the request takes some time.
    let service = ServiceOptions::new().batch_tokens(1);
    let server = start(ServeOptions::default(), service).await;
    let asked = tokio::spawn(ask(server.address, 500));
    let idle = TcpStream::connect(server.address).await.unwrap();
    let service = server.state.embedder().unwrap().clone();
    until(|| service.waiting_texts() > 0).await;
    server.stop.send(()).unwrap();
    until(|| server.state.readiness() != Readiness::Ready).await;
    let answer = asked.await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer:.300}");
    assert!(
        answer.contains("\"index\":499") && answer.ends_with("}}\r\n0\r\n\r\n"),
        "{answer:.300}"
    );
    // A connection without a request is closed and does not delay the shutdown.
    assert_eq!(closed(idle).await, "");
    server.ended.await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn shutdown_under_load_finishes_every_request() {
    for _ in 0..3 {
        let server = start(ServeOptions::default(), ServiceOptions::default()).await;
        let address = server.address;
        let clients: Vec<_> = (0..200)
            .map(|_| {
                tokio::spawn(async move {
                    let mut n_answered = 0;
                    // The loop ends when the server stops listening.
                    while let Ok(mut stream) = TcpStream::connect(address).await {
                        stream.write_all(request(1, "close").as_bytes()).await.unwrap();
                        check_answered(stream).await;
                        n_answered += 1;
                    }
                    n_answered
                })
            })
            .collect();
        let service = server.state.embedder().unwrap().clone();
        until(|| service.waiting_texts() > 2).await;
        server.stop.send(()).unwrap();
        server.ended.await.unwrap().unwrap();
        let mut n_answered = 0;
        for client in clients {
            n_answered += client.await.unwrap();
        }
        assert!(n_answered > 0);
    }
}

#[tokio::test]
async fn serves_connections_not_yet_accepted_at_shutdown() {
    let server = start(ServeOptions::default(), ServiceOptions::default()).await;
    // Nothing else runs on this thread until the next await, so the connections and the shutdown reach the server at
    // the same time.
    let asked = (0..100).map(|_| {
        let mut stream = std::net::TcpStream::connect(server.address).unwrap();
        stream.write_all(request(1, "close").as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        TcpStream::from_std(stream).unwrap()
    });
    let asked: Vec<_> = asked.collect();
    server.stop.send(()).unwrap();
    for stream in asked {
        check_answered(stream).await;
    }
    server.ended.await.unwrap().unwrap();
}

/// Reads a response. Asserts that its status is 200.
async fn check_answered(mut stream: TcpStream) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer:.300}");
}

#[tokio::test]
async fn reports_requests_unfinished_at_the_drain_timeout() {
    let service = ServiceOptions::new().batch_tokens(1);
    let options = ServeOptions { drain_timeout: Duration::ZERO, ..ServeOptions::default() };
    let server = start(options, service).await;
    let asked = tokio::spawn(ask(server.address, 2000));
    let service = server.state.embedder().unwrap().clone();
    until(|| service.waiting_texts() > 0).await;
    server.stop.send(()).unwrap();
    let error = server.ended.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "requests were not finished within 0ns");
    asked.abort();
}

#[tokio::test]
async fn does_not_compute_texts_of_disconnected_client() {
    let service = ServiceOptions::new().batch_tokens(1);
    let server = start(ServeOptions::default(), service).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(request(2000, "close").as_bytes()).await.unwrap();
    let service = server.state.embedder().unwrap().clone();
    until(|| service.waiting_texts() > 0).await;
    drop(stream);
    until(|| service.waiting_texts() == 0).await;
    let n_tokens = service.model().sharing_counts().n_tokens;
    assert!(ask(server.address, 1).await.unwrap().starts_with("HTTP/1.1 200 OK"));
    // The 2,000 texts have at least 6 tokens each. Fewer tokens than that were computed.
    assert!(service.model().sharing_counts().n_tokens < 12_000, "{n_tokens} tokens before");
}

#[tokio::test]
async fn disconnects_silent_clients_without_delaying_others() {
    let options =
        ServeOptions { keep_alive_timeout: Duration::from_secs(3), ..ServeOptions::default() };
    // Each connection takes two file descriptors, because both of its ends are in this process.
    rlimit::increase_nofile_limit(4096).unwrap();
    let server = start(options, ServiceOptions::default()).await;
    let mut silent = Vec::new();
    for i in 0..1000 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        if i % 2 == 0 {
            stream.write_all(b"POST /v1/embeddings HTTP/1.1\r\nhost:").await.unwrap();
        }
        silent.push(stream);
    }
    assert!(ask(server.address, 1).await.unwrap().starts_with("HTTP/1.1 200 OK"));
    for stream in silent {
        let response = closed(stream).await;
        assert!(response.is_empty() || response.starts_with("HTTP/1.1 408"), "{response}");
    }
}

#[tokio::test]
async fn disconnects_client_that_does_not_read() {
    let options =
        ServeOptions { write_timeout: Duration::from_millis(200), ..ServeOptions::default() };
    let server = start(options, ServiceOptions::default()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // The responses have more bytes than the system buffers for a client that does not read. Equal texts are computed
    // once, so only the writing of the responses takes time.
    let many = request_for(&vec!["a".to_owned(); 2000], "keep-alive").repeat(20);
    let (mut reading, mut writing) = stream.split();
    let _ = timeout(Duration::from_secs(2), writing.write_all(many.as_bytes())).await;
    sleep(Duration::from_secs(3)).await;
    let mut answers = Vec::new();
    let read = timeout(LONG, reading.read_to_end(&mut answers)).await.unwrap();
    // Only the buffered bytes arrive. Each of the 20 responses has 2.7 MB.
    assert!(read.is_err() || answers.len() < 20 * 2_700_000, "{} bytes", answers.len());
}

/// Sends a request on a keep-alive connection and reads the response.
async fn ask_livez(stream: &mut TcpStream) {
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = [0; 1024];
    let n = timeout(LONG, stream.read(&mut answer)).await.unwrap().unwrap();
    assert!(answer[..n].starts_with(b"HTTP/1.1 200 OK") && answer[..n].ends_with(b"ok"));
}

#[tokio::test]
async fn keeps_idle_connection_for_the_configured_time() {
    let keep_alive_timeout = Duration::from_secs(2);
    let options = ServeOptions { keep_alive_timeout, ..ServeOptions::default() };
    let server = start(options, ServiceOptions::default()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    ask_livez(&mut stream).await;
    // Each request restarts the timeout.
    for _ in 0..2 {
        sleep(Duration::from_millis(1200)).await;
        ask_livez(&mut stream).await;
    }
    let idle = Instant::now();
    assert_eq!(closed(stream).await, "");
    assert!(idle.elapsed() >= keep_alive_timeout - Duration::from_millis(100));
}

#[tokio::test]
async fn idle_connections_do_not_keep_other_clients_out() {
    let options = ServeOptions { max_connections: 8, ..ServeOptions::default() };
    let server = start(options, ServiceOptions::new().batch_tokens(1)).await;
    let mut in_use = TcpStream::connect(server.address).await.unwrap();
    ask_livez(&mut in_use).await;
    let mut silent = Vec::new();
    for i in 0..100 {
        // Some clients send the beginning of a request, and all of them stay connected.
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        if i % 2 == 0 {
            stream.write_all(b"POST /v1/embeddings HTTP/1.1\r\nhost:").await.unwrap();
        }
        silent.push(stream);
        // A connection that is used more often than others stays open.
        ask_livez(&mut in_use).await;
    }
    assert!(ask(server.address, 1).await.unwrap().starts_with("HTTP/1.1 200 OK"));
    ask_livez(&mut in_use).await;
}

#[tokio::test]
async fn requests_in_progress_are_finished_when_too_many_clients_connect() {
    let options = ServeOptions { max_connections: 4, ..ServeOptions::default() };
    let server = start(options, ServiceOptions::new().batch_tokens(1)).await;
    let service = server.state.embedder().unwrap().clone();
    let address = server.address;
    let asked: Vec<_> = (0..3).map(|_| tokio::spawn(ask(address, 500))).collect();
    until(|| service.waiting_texts() > 1000).await;
    let silent: Vec<_> = (0..20).map(|_| tokio::spawn(TcpStream::connect(address))).collect();
    for answer in asked {
        let answer = answer.await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer:.300}");
        assert!(answer.ends_with("}}\r\n0\r\n\r\n"), "{answer:.300}");
    }
    for stream in silent {
        stream.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_smallest_number_of_connections_is_enough_for_one_client_at_a_time() {
    let options = ServeOptions { max_connections: 1, ..ServeOptions::default() };
    let server = start(options, ServiceOptions::default()).await;
    for _ in 0..3 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        sleep(Duration::from_millis(300)).await;
        ask_livez(&mut stream).await;
    }
}

/// Many load balancers keep idle connections for 60 s, and Go's HTTP client keeps them for 90 s. A server that closes
/// idle connections sooner may lose requests.
#[tokio::test]
async fn default_keep_alive_is_longer_than_that_of_common_clients() {
    assert!(ServeOptions::default().keep_alive_timeout > Duration::from_secs(90));
    // The longest possible timeout does not overflow.
    let options = ServeOptions { keep_alive_timeout: Duration::MAX, ..ServeOptions::default() };
    let server = start(options, ServiceOptions::default()).await;
    ask_livez(&mut TcpStream::connect(server.address).await.unwrap()).await;
}
