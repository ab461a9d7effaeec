//! [`Service`]: models with a queue, on the fixtures.
#![allow(clippy::unwrap_used)]

use std::pin::pin;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;

use futures_executor::block_on;
use qwen3_embed::{
    BatchReport, EmbedOptions, Embedder, Error, ModelError, OnBatch, Overflow, Prompt, RankOptions,
    Reranker, ScoreOptions, Service, ServiceOptions, ServiceState, SpecialTokens, TextError, Texts,
};
use qwen3_embed_testing::fixtures::{self, model};

fn embedder() -> Embedder {
    Embedder::builder(model("wide")).build().unwrap()
}

fn reranker() -> Reranker {
    Reranker::builder(fixtures::reranker("tied")).build().unwrap()
}

fn service(options: ServiceOptions) -> Service<Embedder> {
    embedder().into_service(options).unwrap()
}

fn strings(texts: &[&str]) -> Texts {
    Texts::Strings(texts.iter().map(|&text| text.to_owned()).collect())
}

type Reports = Arc<Mutex<Vec<BatchReport>>>;

/// A service whose worker thread waits after each batch for a message.
fn stepwise(mut options: ServiceOptions) -> (Service<Embedder>, Reports, mpsc::Sender<()>) {
    let (go, gone) = mpsc::channel();
    let (gone, reports) = (Mutex::new(gone), Arc::new(Mutex::new(Vec::new())));
    let seen = Arc::clone(&reports);
    options.on_batch = Some(Arc::new(move |report| {
        seen.lock().unwrap().push(*report);
        // The sender is gone if the test is over.
        let _ = gone.lock().unwrap().recv();
    }));
    (service(options), reports, go)
}

/// Waits for the reports of `n` batches.
fn wait_for(reports: &Mutex<Vec<BatchReport>>, n: usize) {
    while reports.lock().unwrap().len() < n {
        thread::yield_now();
    }
}

#[test]
fn service_gives_the_vectors_of_the_embedder_bit_for_bit() {
    let direct = embedder();
    let service = service(ServiceOptions { batch_tokens: 40, ..ServiceOptions::default() });
    thread::scope(|scope| {
        for caller in 0..8 {
            let (service, direct) = (service.clone(), &direct);
            scope.spawn(move || {
                let texts: Vec<String> =
                    (0..=caller).map(|i| format!("text {i} of caller {caller}")).collect();
                let options = EmbedOptions { prompt: Prompt::Query, ..EmbedOptions::default() };
                let embedded = block_on(service.embed(texts.clone().into(), options)).unwrap();
                assert_eq!(embedded.embeddings, direct.embed_queries(&texts).unwrap());
                let queries: Vec<String> =
                    texts.iter().map(|text| direct.query_prompt().to_owned() + text).collect();
                assert_eq!(embedded.n_tokens, direct.count_tokens(&queries).unwrap());
            });
        }
    });
}

#[test]
fn embed_options_match_the_embedders_methods() {
    let (direct, service) = (embedder(), service(ServiceOptions::default()));
    let embed = |options| block_on(service.embed(strings(&["one", "two"]), options)).unwrap();
    let plain = EmbedOptions::default();
    let documents = direct.embed_documents(&["one", "two"]).unwrap();
    assert_eq!(embed(plain.clone()).embeddings, documents);

    let short = embed(EmbedOptions { dimensions: Some(32), ..plain.clone() }).embeddings;
    let shorter = Embedder::builder(model("wide")).dimensions(32).build().unwrap();
    assert_eq!(short, shorter.embed_documents(&["one", "two"]).unwrap());

    let instruction = "Find the number";
    let prompt = Prompt::Instruction(instruction.to_owned());
    let instructed = embed(EmbedOptions { prompt, ..plain.clone() }).embeddings;
    assert_eq!(instructed, direct.embed_queries_with(instruction, &["one", "two"]).unwrap());

    let prompt = Prompt::Named("query".to_owned());
    let named = embed(EmbedOptions { prompt, ..plain.clone() }).embeddings;
    assert_eq!(named, direct.embed_queries(&["one", "two"]).unwrap());

    let raw = embed(EmbedOptions { normalize: false, ..plain.clone() }).embeddings;
    let mut row = raw.row(0).to_vec();
    assert_ne!(row, documents.row(0));
    qwen3_embed::normalize(&mut row);
    assert_eq!(row, documents.row(0));

    let tokens = direct.tokenize(&["one"]).unwrap();
    let embedded = block_on(service.embed(tokens.into(), plain)).unwrap();
    assert_eq!(embedded.embeddings.row(0), documents.row(0));
}

#[test]
fn errors_are_those_of_the_embedder_with_the_index_of_the_text() {
    let direct = Embedder::builder(model("wide")).max_tokens(8).build().unwrap();
    let service = direct.into_service(ServiceOptions::default()).unwrap();
    let embed = |texts, options| block_on(service.embed(texts, options)).unwrap_err();
    let plain = EmbedOptions::default();
    let long = "many words are in this text, which has more tokens than the limit allows";

    let error = embed(strings(&["a", long]), plain.clone());
    assert!(matches!(error, Error::TextTooLong { text: 1, max_tokens: 8, .. }), "{error:?}");
    let cut = EmbedOptions { overflow: Some(Overflow::TruncateRight), ..plain.clone() };
    let embedded = block_on(service.embed(strings(&["a", long]), cut)).unwrap();
    assert_eq!(embedded.n_tokens[1], 8);
    for (overflow, max_tokens) in
        [(Overflow::TruncateRight, 4), (Overflow::TruncateLeft, 1), (Overflow::TruncateRight, 8)]
    {
        let cut = EmbedOptions {
            overflow: Some(overflow),
            max_tokens: Some(max_tokens),
            ..plain.clone()
        };
        let embedded = block_on(service.embed(strings(&[long, long]), cut)).unwrap();
        assert_eq!(embedded.n_tokens, [max_tokens; 2]);
    }
    let error = embed(strings(&[long]), EmbedOptions { max_tokens: Some(3), ..plain.clone() });
    assert!(matches!(error, Error::TextTooLong { text: 0, max_tokens: 3, .. }), "{error:?}");
    for got in [0, 9] {
        let error = embed(strings(&["a"]), EmbedOptions { max_tokens: Some(got), ..plain.clone() });
        assert!(matches!(error, Error::Setting { min: 1, max: 8, .. }), "{error:?}");
    }

    let error = embed(vec![vec![0], vec![]].into(), plain.clone());
    assert!(matches!(error, Error::Model(ModelError::EmptyText { text: 1 })), "{error:?}");
    let error = embed(vec![vec![0, u32::MAX]].into(), plain.clone());
    let out_of_range =
        ModelError::TokenOutOfRange { text: 0, position: 1, id: u32::MAX, vocab_size: 0 };
    assert_eq!(
        error.to_string().split_once("below").unwrap().0,
        out_of_range.to_string().split_once("below").unwrap().0
    );
    let error = embed(strings(&["a"]), EmbedOptions { dimensions: Some(1 << 20), ..plain.clone() });
    assert!(matches!(error, Error::Dimensions { got: 1_048_576, .. }), "{error:?}");
    let prompt = Prompt::Named("nonsense".to_owned());
    let error = embed(strings(&["a"]), EmbedOptions { prompt, ..plain.clone() });
    assert!(matches!(error, Error::NoSuchPrompt { .. }), "{error:?}");
    let spaces = [" ".repeat(600_000)];
    let error = embed(strings(&["a", &spaces[0]]), plain.clone());
    assert!(matches!(error, Error::Text(TextError::WhiteSpace { text: 1, .. })), "{error:?}");

    // The service still works after all these errors.
    let embedded = block_on(service.embed(strings(&[]), plain.clone())).unwrap();
    assert!(embedded.embeddings.is_empty());
    assert_eq!(block_on(service.embed(strings(&["a"]), plain)).unwrap().embeddings.rows(), 1);
    assert_eq!((service.state(), service.waiting_texts()), (ServiceState::Running, 0));
}

#[test]
fn texts_of_several_callers_share_a_batch() {
    let options = ServiceOptions { tokenizer_threads: 1, ..ServiceOptions::default() };
    let (service, reports, go) = stepwise(options);
    let mut context = Context::from_waker(Waker::noop());
    let embed = |texts: Texts| Box::pin(service.embed(texts, EmbedOptions::default()));
    let mut first = embed(strings(&["first"]));
    assert!(first.as_mut().poll(&mut context).is_pending());
    wait_for(&reports, 1);
    let mut callers = ["a", "b", "c"].map(|text| embed(strings(&[text])));
    for caller in &mut callers {
        assert!(caller.as_mut().poll(&mut context).is_pending());
    }
    // The only tokenizer thread reads this request last, so when it fails, the others have been queued.
    block_on(embed(vec![vec![]].into())).unwrap_err();
    drop(go);
    for caller in callers {
        block_on(caller).unwrap();
    }
    // A batch is reported after its callers have received their vectors.
    wait_for(&reports, 2);
    assert_eq!(reports.lock().unwrap()[1].n_texts, 3);
}

#[test]
fn dropped_requests_are_not_computed() {
    let (service, reports, go) = stepwise(ServiceOptions::default());
    let mut context = Context::from_waker(Waker::noop());
    let first = service.embed(strings(&["first"]), EmbedOptions::default());
    let mut first = pin!(first);
    assert!(first.as_mut().poll(&mut context).is_pending());
    wait_for(&reports, 1);
    {
        let gone = pin!(service.embed(strings(&["a", "b", "c"]), EmbedOptions::default()));
        assert!(gone.poll(&mut context).is_pending());
        assert_eq!(service.waiting_texts(), 3);
    }
    assert_eq!(service.waiting_texts(), 0);
    drop(go);
    assert!(matches!(first.poll(&mut context), Poll::Ready(Ok(_))));
    block_on(service.embed(strings(&["last"]), EmbedOptions::default())).unwrap();
    wait_for(&reports, 2);
    let n_texts: Vec<usize> = reports.lock().unwrap().iter().map(|report| report.n_texts).collect();
    assert_eq!(n_texts, [1, 1]);
}

#[test]
fn full_queue_rejects_request_and_suggests_a_delay() {
    let options = ServiceOptions { max_waiting_texts: 2, ..ServiceOptions::default() };
    let (service, reports, go) = stepwise(options);
    let mut context = Context::from_waker(Waker::noop());
    let embed = |texts: &[&str]| Box::pin(service.embed(strings(texts), EmbedOptions::default()));
    let mut first = embed(&["first"]);
    assert!(first.as_mut().poll(&mut context).is_pending());
    wait_for(&reports, 1);
    // Fewer texts wait than the limit, so a request is accepted although it has more texts than the limit.
    let mut large = embed(&["a"; 5]);
    assert!(large.as_mut().poll(&mut context).is_pending());
    let Poll::Ready(Err(error)) = embed(&["late"]).as_mut().poll(&mut context) else { panic!() };
    let Error::ServiceFull { n_waiting: 5, limit: 2, retry_after } = error else {
        panic!("{error:?}")
    };
    assert!(!retry_after.is_zero());
    drop(go);
    assert_eq!(block_on(large).unwrap().embeddings.rows(), 5);
    block_on(embed(&["late"])).unwrap();
}

#[test]
fn draining_finishes_accepted_requests() {
    let service = service(ServiceOptions { batch_tokens: 1, ..ServiceOptions::default() });
    let mut context = Context::from_waker(Waker::noop());
    let mut accepted = pin!(service.embed(strings(&["a"; 20]), EmbedOptions::default()));
    assert!(accepted.as_mut().poll(&mut context).is_pending());
    let drained = service.drain();
    let refused = block_on(service.embed(strings(&["b"]), EmbedOptions::default()));
    assert!(matches!(refused, Err(Error::ServiceDraining)), "{refused:?}");
    block_on(drained);
    assert_eq!(service.state(), ServiceState::Stopped);
    assert_eq!(block_on(accepted).unwrap().embeddings.rows(), 20);
    let refused = block_on(service.embed(strings(&["b"]), EmbedOptions::default()));
    assert!(matches!(refused, Err(Error::ServiceStopped)), "{refused:?}");
    // A second call has nothing to wait for.
    block_on(service.drain());
}

#[test]
fn panic_of_the_worker_thread_fails_all_requests() {
    let (service, reports, go) = stepwise(ServiceOptions::default());
    let mut context = Context::from_waker(Waker::noop());
    let mut first = pin!(service.embed(strings(&["first"]), EmbedOptions::default()));
    assert!(first.as_mut().poll(&mut context).is_pending());
    wait_for(&reports, 1);
    let mut waiting = pin!(service.embed(strings(&["waiting"]), EmbedOptions::default()));
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    service.panic();
    drop(go);
    block_on(first).unwrap();
    let lost = block_on(waiting);
    assert!(matches!(lost, Err(Error::ServiceStopped)), "{lost:?}");
    assert_eq!(service.state(), ServiceState::Stopped);
    let refused = block_on(service.embed(strings(&["late"]), EmbedOptions::default()));
    assert!(matches!(refused, Err(Error::ServiceStopped)), "{refused:?}");
    block_on(service.drain());
}

#[test]
fn worker_thread_ends_when_the_last_handle_is_dropped() {
    struct Signal(mpsc::Sender<()>);
    impl Drop for Signal {
        fn drop(&mut self) {
            self.0.send(()).unwrap();
        }
    }
    let (ended, end) = mpsc::channel();
    let signal = Signal(ended);
    let on_batch: OnBatch = Arc::new(move |_| {
        let _ = &signal;
    });
    let service = service(ServiceOptions { on_batch: Some(on_batch), ..ServiceOptions::default() });
    let second = service.clone();
    drop(service);
    block_on(second.embed(strings(&["still"]), EmbedOptions::default())).unwrap();
    assert!(end.try_recv().is_err());
    drop(second);
    end.recv().unwrap();
}

#[test]
fn service_gives_the_scores_of_the_reranker() {
    let direct = reranker();
    let service = reranker().into_service(ServiceOptions::default()).unwrap();
    let (query, documents) = ("the capital of China", ["Beijing", "gravity", "Paris"]);
    let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let instruction = Some("Find it".to_owned());
    let options = ScoreOptions { instruction, ..ScoreOptions::default() };
    let scored =
        block_on(service.score(owned(&[query]), owned(&documents), options.clone())).unwrap();
    let rank_options = RankOptions { instruction: Some("Find it"), ..RankOptions::default() };
    assert_eq!(scored.ranked(), direct.rank(query, &documents, rank_options).unwrap());
    let pairs = documents.map(|document| (query, document));
    assert_eq!(scored.scores(), direct.scores_with("Find it", &pairs).unwrap());
    let prompts = direct.tokenize("Find it", &pairs).unwrap();
    assert_eq!(scored.n_tokens, prompts.iter().map(Vec::len).collect::<Vec<_>>());

    let paired = block_on(service.score(owned(&["a", "b"]), owned(&["c", "d"]), options.clone()));
    assert_eq!(
        paired.unwrap().scores(),
        direct.scores_with("Find it", &[("a", "c"), ("b", "d")]).unwrap()
    );
    let error = block_on(service.score(owned(&["a", "b"]), owned(&["c"]), options)).unwrap_err();
    assert!(matches!(error, Error::Pairs { queries: 2, documents: 1 }), "{error:?}");
    // `max_document_tokens` truncates each document.
    let long = ["Beijing is the capital of China, and has been for long", "gravity"];
    let cut = long.map(|document| direct.tokenizer().cut(document, 3).unwrap());
    assert!(
        cut[0].len() < long[0].len()
            && direct.tokenizer().pieces(cut[0], SpecialTokens::PlainText).unwrap().len() == 4
    );
    let options = ScoreOptions { max_document_tokens: Some(3), ..ScoreOptions::default() };
    let scored = block_on(service.score(owned(&[query]), owned(&long), options)).unwrap();
    assert_eq!(scored.scores(), direct.scores(&cut.map(|document| (query, document))).unwrap());

    let options = ScoreOptions { max_tokens: Some(0), ..ScoreOptions::default() };
    let error = block_on(service.score(owned(&["a"]), owned(&["c"]), options)).unwrap_err();
    assert!(matches!(error, Error::Setting { setting: "max_tokens", got: 0, .. }), "{error:?}");
}

#[test]
fn rejects_settings_out_of_range() {
    let plain = ServiceOptions::default();
    let settings = [
        ("batch_tokens", ServiceOptions { batch_tokens: 0, ..plain.clone() }),
        ("max_waiting_texts", ServiceOptions { max_waiting_texts: 0, ..plain.clone() }),
        ("tokenizer_threads", ServiceOptions { tokenizer_threads: 0, ..plain.clone() }),
        ("tokenizer_threads", ServiceOptions { tokenizer_threads: 1025, ..plain }),
    ];
    for (expected, options) in settings {
        let error = embedder().into_service(options).unwrap_err();
        assert!(
            matches!(error, Error::Setting { setting, .. } if setting == expected),
            "{error:?}"
        );
    }
}
