//! A client of a server with an OpenAI-compatible API.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::{StreamExt, TryStreamExt, stream};
use reqwest::header::RETRY_AFTER;
use reqwest::{Client, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Error;

/// The number of texts of a request.
const TEXTS: usize = 128;

/// The number of requests that wait for an answer at the same time.
const REQUESTS: usize = 8;

/// How often a request is sent, at most. The first request, which connects, is sent once.
const ATTEMPTS: u32 = 6;

/// The address of a server and the models that it has.
#[derive(Clone, Default)]
pub struct ServerSettings {
    /// The base address of the API, such as `http://localhost:8000/v1`.
    pub url: String,
    /// The key, if the server asks for one.
    pub api_key: Option<String>,
    /// The name of the embedding model.
    pub model: String,
    /// The name of the reranker. Without one, there is no function `rerank`.
    pub reranker: Option<String>,
    /// The number of dimensions of vectors. Default: what the server answers if a request does not say it.
    pub dimensions: Option<usize>,
}

impl fmt::Debug for ServerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, api_key, model, reranker, dimensions } = self;
        f.debug_struct("ServerSettings")
            .field("url", url)
            .field("api_key", &api_key.as_ref().map(|_| "…"))
            .field("model", model)
            .field("reranker", reranker)
            .field("dimensions", dimensions)
            .finish()
    }
}

/// A server that computes vectors and scores: this project's, or another one with the routes `/embeddings` and
/// `/rerank`.
///
/// Prompts are put before texts here, in the format of Qwen3-Embedding, so the server need not know them. A request
/// that fails because the server is overloaded or restarted is sent again, for about a minute.
#[derive(Debug)]
pub struct Server {
    client: Client,
    settings: ServerSettings,
    dimensions: usize,
    attempts: u32,
}

impl Server {
    /// Connects to a server. One text is embedded, because the number of dimensions must be known before a query is
    /// planned.
    ///
    /// # Errors
    ///
    /// [`Error::Server`] if the server cannot be reached, or if its answer is not that of an embedding model.
    pub async fn connect(settings: ServerSettings) -> Result<Self, Error> {
        let client = Client::builder().connect_timeout(Duration::from_secs(10)).build();
        let client = client.map_err(|error| problem(&settings.url, error))?;
        let mut server = Self { client, settings, dimensions: 0, attempts: 1 };
        let vectors = server.embed_request(&["dimensions".to_owned()]).await?;
        server.dimensions = vectors.first().map_or(0, Vec::len);
        server.attempts = ATTEMPTS;
        match server.settings.dimensions {
            Some(expected) if expected != server.dimensions => Err(problem(
                &server.url("embeddings"),
                format!("vectors have {} dimensions, expected {expected}", server.dimensions),
            )),
            _ => Ok(server),
        }
    }

    /// The number of dimensions of vectors.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    pub(crate) fn has_reranker(&self) -> bool {
        self.settings.reranker.is_some()
    }

    /// The vectors of each group of texts, one after the other.
    pub(crate) async fn embed(&self, groups: Vec<Vec<String>>) -> Result<Vec<Vec<f32>>, Error> {
        let lengths: Vec<usize> = groups.iter().map(Vec::len).collect();
        let texts: Vec<String> = groups.into_iter().flatten().collect();
        let requests = texts.chunks(TEXTS).map(|texts| self.embed_request(texts));
        let answers = all(requests.collect()).await?;
        let mut vectors = answers.into_iter().flatten();
        let groups = lengths.into_iter().map(|n| vectors.by_ref().take(n).flatten().collect());
        Ok(groups.collect())
    }

    async fn embed_request(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, Error> {
        let (model, dimensions) = (&self.settings.model, self.settings.dimensions);
        let body = EmbedBody { model, input: texts, encoding_format: "base64", dimensions };
        let answer: EmbedAnswer = self.post("embeddings", &body).await?;
        let url = self.url("embeddings");
        let vectors = answer.data.into_iter().map(|row| (row.index, row.embedding.values()));
        let vectors = in_order(vectors, texts.len()).map_err(|error| problem(&url, error))?;
        let vectors = vectors.into_iter().collect::<Result<Vec<_>, _>>();
        let vectors = vectors.map_err(|error| problem(&url, error))?;
        let expected = if self.dimensions == 0 { vectors[0].len() } else { self.dimensions };
        match vectors.iter().find(|vector| vector.len() != expected || expected == 0) {
            Some(vector) => {
                let message =
                    format!("a vector has {} dimensions, expected {expected}", vector.len());
                Err(problem(&url, message))
            }
            None => Ok(vectors),
        }
    }

    /// The scores of the documents of each query.
    pub(crate) async fn rerank(
        &self,
        queries: Vec<(String, Vec<String>)>,
    ) -> Result<Vec<Vec<f32>>, Error> {
        let chunks = queries.iter().flat_map(|(query, documents)| {
            documents.chunks(TEXTS).map(move |documents| self.rerank_request(query, documents))
        });
        let mut scores = all(chunks.collect()).await?.into_iter();
        let groups = queries.iter().map(|(_, documents)| {
            let n_chunks = documents.len().div_ceil(TEXTS);
            scores.by_ref().take(n_chunks).flatten().collect()
        });
        Ok(groups.collect())
    }

    async fn rerank_request(&self, query: &str, documents: &[String]) -> Result<Vec<f32>, Error> {
        let model = self.settings.reranker.as_deref().unwrap_or_default();
        let body = RerankBody { model, query, documents, return_documents: false };
        let answer: RerankAnswer = self.post("rerank", &body).await?;
        let scores = answer.results.into_iter().map(|row| (row.index, row.relevance_score));
        in_order(scores, documents.len()).map_err(|error| problem(&self.url("rerank"), error))
    }

    fn url(&self, route: &str) -> String {
        format!("{}/{route}", self.settings.url.trim_end_matches('/'))
    }

    /// Sends a request, and again if the server is overloaded or cannot be reached.
    async fn post<A: DeserializeOwned>(
        &self,
        route: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<A, Error> {
        let url = self.url(route);
        let mut attempt = 1;
        loop {
            let mut request = self.client.post(&url).json(body);
            if let Some(key) = &self.settings.api_key {
                request = request.bearer_auth(key);
            }
            let pause = Duration::from_secs(1 << attempt);
            match request.send().await {
                Ok(answer) if answer.status().is_success() => {
                    return answer.json().await.map_err(|error| problem(&url, error));
                }
                Ok(answer) if attempt < self.attempts && is_temporary(answer.status()) => {
                    tokio::time::sleep(retry_after(&answer).unwrap_or(pause)).await;
                }
                Err(error)
                    if attempt < self.attempts && (error.is_connect() || error.is_request()) =>
                {
                    tokio::time::sleep(pause).await;
                }
                Ok(answer) => {
                    let status = answer.status();
                    let text = answer.text().await.unwrap_or_default();
                    return Err(problem(&url, format!("{status}: {text}")));
                }
                Err(error) => return Err(problem(&url, error)),
            }
            attempt += 1;
        }
    }
}

/// The answers to these requests, of which [`REQUESTS`] are sent at the same time.
async fn all<T>(requests: Vec<impl Future<Output = Result<T, Error>>>) -> Result<Vec<T>, Error> {
    stream::iter(requests).buffered(REQUESTS).try_collect().await
}

/// Whether the same request can succeed later.
fn is_temporary(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502..=504)
}

/// How long the server asks to wait, but at most a minute.
fn retry_after(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(Duration::from_secs(60)))
}

/// The values by their indices, of which each must occur once.
fn in_order<T>(rows: impl Iterator<Item = (usize, T)>, n: usize) -> Result<Vec<T>, String> {
    let mut values: Vec<Option<T>> = (0..n).map(|_| None).collect();
    let mut got = 0;
    for (index, value) in rows {
        let place = values.get_mut(index).ok_or(format!("there is no text {index} of {n}"))?;
        *place = Some(value);
        got += 1;
    }
    let complete = values.into_iter().collect::<Option<Vec<T>>>();
    complete
        .filter(|_| got == n)
        .ok_or(format!("expected a result for each of {n} texts, got {got}"))
}

/// An error with its causes.
fn problem(url: &str, problem: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let problem = problem.into();
    let mut text = problem.to_string();
    let mut cause = problem.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    Error::Server { url: url.to_owned(), problem: text }
}

#[derive(Serialize)]
struct EmbedBody<'a> {
    model: &'a str,
    input: &'a [String],
    encoding_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<usize>,
}

#[derive(Deserialize)]
struct EmbedAnswer {
    data: Vec<EmbedRow>,
}

#[derive(Deserialize)]
struct EmbedRow {
    index: usize,
    embedding: Values,
}

/// A vector. Some servers do not know base64.
#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    Base64(String),
    Numbers(Vec<f32>),
}

impl Values {
    fn values(self) -> Result<Vec<f32>, String> {
        let text = match self {
            Self::Numbers(values) => return Ok(values),
            Self::Base64(text) => text,
        };
        let bytes = STANDARD.decode(text).map_err(|error| format!("a vector: {error}"))?;
        let (values, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(format!("a vector has {} bytes, which is no multiple of 4", bytes.len()));
        }
        Ok(values.iter().map(|&value| f32::from_le_bytes(value)).collect())
    }
}

#[derive(Serialize)]
struct RerankBody<'a> {
    model: &'a str,
    query: &'a str,
    documents: &'a [String],
    return_documents: bool,
}

#[derive(Deserialize)]
struct RerankAnswer {
    results: Vec<RerankRow>,
}

#[derive(Deserialize)]
struct RerankRow {
    index: usize,
    relevance_score: f32,
}
