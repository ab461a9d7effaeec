//! [`Service`] on the fixtures: vectors, scores, batches, limits, cancellation and shutdown.
#![allow(clippy::unwrap_used)]

use std::pin::pin;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;

use futures_executor::block_on;
use qwen3_embed::{
    BatchReport, EmbedOptions, Embedder, Error, ModelError, Overflow, Precision, Prompt, Reranker,
    ScoreOptions, Service, ServiceOptions, ServiceState, Sharing, SpecialTokens, Text, TextError,
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

fn strings(texts: &[&str]) -> Vec<Text<'static>> {
    texts.iter().map(|&text| Text::from(text.to_owned())).collect()
}

fn tokens(texts: &[&[u32]]) -> Vec<Text<'static>> {
    texts.iter().map(|&tokens| Text::from(tokens.to_vec())).collect()
}

type Reports = Arc<Mutex<Vec<BatchReport>>>;

/// A service whose worker thread waits after each batch for a message on the returned channel.
fn stepwise(mut options: ServiceOptions) -> (Service<Embedder>, Reports, mpsc::Sender<()>) {
    let (go, gone) = mpsc::channel();
    let (gone, reports) = (Mutex::new(gone), Arc::new(Mutex::new(Vec::new())));
    let seen = Arc::clone(&reports);
    options = options.on_batch(move |report: &BatchReport| {
        seen.lock().unwrap().push(*report);
        // The test may have dropped the sender. Then the worker thread no longer waits.
        let _ = gone.lock().unwrap().recv();
    });
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
    let service = service(ServiceOptions::new().batch_tokens(40));
    thread::scope(|scope| {
        for caller in 0..8 {
            let (service, direct) = (service.clone(), &direct);
            scope.spawn(move || {
                let texts: Vec<String> =
                    (0..=caller).map(|i| format!("text {i} of caller {caller}")).collect();
                let options = EmbedOptions::new().prompt(Prompt::Query);
                let embedded = block_on(service.embed(texts.clone(), options)).unwrap();
                assert_eq!(embedded.embeddings, direct.embed_queries(&texts).unwrap());
                let queries: Vec<String> =
                    texts.iter().map(|text| direct.query_prompt().to_owned() + text).collect();
                assert_eq!(embedded.embeddings.n_tokens(), direct.count_tokens(&queries).unwrap());
            });
        }
    });
}

#[test]
fn embed_options_match_the_embedders_methods() {
    let (direct, service) = (embedder(), service(ServiceOptions::new()));
    let texts = ["one", "two words and some more"];
    let prompts = [
        Prompt::Query,
        Prompt::Instruction("Find the number".to_owned()),
        Prompt::Named("query".to_owned()),
    ];
    let cut = EmbedOptions::new().max_tokens(3);
    let options = [
        EmbedOptions::new(),
        EmbedOptions::new().dimensions(32),
        EmbedOptions::new().normalize(false),
        cut.clone().overflow(Overflow::TruncateLeft),
        cut.overflow(Overflow::TruncateRight),
    ];
    for options in prompts.map(|prompt| EmbedOptions::new().prompt(prompt)).iter().chain(&options) {
        let embedded = block_on(service.embed(texts, options.clone())).unwrap();
        let expected = direct.embed_with(texts, options).unwrap();
        assert_eq!(embedded.embeddings, expected, "{options:?}");
    }
    let tokens = direct.tokenize(&texts).unwrap();
    let embedded = block_on(service.embed(tokens, EmbedOptions::new())).unwrap();
    assert_eq!(embedded.embeddings, direct.embed_documents(&texts).unwrap());
}

#[test]
fn service_keeps_every_setting_of_the_embedder_builder() {
    let texts = ["one", "ignore this<|im_end|> and these words"];
    let builder = || Embedder::builder(model("wide"));
    let by_default = builder().build().unwrap().embed_documents(&texts).unwrap();
    let settings = [
        ("dimensions", true, builder().dimensions(32)),
        ("normalize", true, builder().normalize(false)),
        ("special_tokens", true, builder().special_tokens(SpecialTokens::PlainText)),
        ("overflow", true, builder().max_tokens(4).overflow(Overflow::TruncateRight)),
        ("precision", true, builder().precision(Precision::Int8)),
        ("threads", false, builder().threads(3)),
        ("batch_tokens", false, builder().batch_tokens(1)),
        ("sharing", false, builder().sharing(Sharing::Off)),
        ("preload", false, builder().preload(true)),
    ];
    for (setting, changes_vectors, builder) in settings {
        let expected = builder.clone().build().unwrap().embed_documents(&texts).unwrap();
        let service = builder.build().unwrap().into_service(ServiceOptions::new()).unwrap();
        let embedded = block_on(service.embed(texts, EmbedOptions::new())).unwrap();
        assert_eq!(embedded.embeddings, expected, "{setting}");
        assert_eq!(expected != by_default, changes_vectors, "{setting}");
        let counts = service.model().sharing_counts();
        match setting {
            "threads" => assert_eq!(service.model().threads(), 3),
            "sharing" => assert_eq!(counts.n_tokens, counts.n_computed),
            _ => {}
        }
    }
    let limited = builder().max_tokens(4).build().unwrap();
    let service = limited.into_service(ServiceOptions::new()).unwrap();
    let error = block_on(service.embed(texts, EmbedOptions::new())).unwrap_err();
    assert!(matches!(error, Error::TextTooLong { text: 1, max_tokens: 4, .. }), "{error}");
}

#[test]
fn service_keeps_every_setting_of_the_reranker_builder() {
    let builder = || Reranker::builder(fixtures::reranker("tied"));
    let (query, long) = ("query", "a long document, ".repeat(200));
    let default = builder().build().unwrap();
    let max_tokens = default.tokenize(&[(query, "")], &ScoreOptions::new()).unwrap()[0].len() + 9;
    for (setting, builder) in [
        ("max_tokens", builder().max_tokens(max_tokens)),
        ("precision", builder().precision(Precision::Int8)),
        ("threads", builder().threads(3)),
        ("batch_tokens", builder().batch_tokens(1)),
        ("sharing", builder().sharing(Sharing::Off)),
        ("preload", builder().preload(true)),
    ] {
        let direct = builder.clone().build().unwrap();
        let expected = direct.score_with(&[(query, &long)], &ScoreOptions::new()).unwrap();
        let service = builder.build().unwrap().into_service(ServiceOptions::new()).unwrap();
        let (query, document) = (vec![query.to_owned()], vec![long.clone()]);
        let scored = block_on(service.score(query, document, ScoreOptions::new())).unwrap();
        assert_eq!(scored.scores, expected, "{setting}");
        match setting {
            "max_tokens" => assert_eq!(expected.n_tokens(), [max_tokens]),
            "threads" => assert_eq!(service.model().threads(), 3),
            _ => {}
        }
    }
}

#[test]
fn errors_are_those_of_the_embedder_with_the_index_of_the_text() {
    let direct = Embedder::builder(model("wide")).max_tokens(8).build().unwrap();
    let service = direct.into_service(ServiceOptions::new()).unwrap();
    let embed = |texts, options| block_on(service.embed(texts, options)).unwrap_err();
    let plain = EmbedOptions::new();
    let long = "many words are in this text, which has more tokens than the limit allows";

    let error = embed(strings(&["a", long]), plain.clone());
    assert!(matches!(error, Error::TextTooLong { text: 1, max_tokens: 8, .. }), "{error:?}");
    let cut = EmbedOptions::new().overflow(Overflow::TruncateRight);
    let embedded = block_on(service.embed(strings(&["a", long]), cut)).unwrap();
    assert_eq!(embedded.embeddings.n_tokens()[1], 8);
    for (overflow, max_tokens) in
        [(Overflow::TruncateRight, 4), (Overflow::TruncateLeft, 1), (Overflow::TruncateRight, 8)]
    {
        let cut = EmbedOptions::new().overflow(overflow).max_tokens(max_tokens);
        let embedded = block_on(service.embed(strings(&[long, long]), cut)).unwrap();
        assert_eq!(embedded.embeddings.n_tokens(), [max_tokens; 2]);
    }
    let error = embed(strings(&[long]), EmbedOptions::new().max_tokens(3));
    assert!(matches!(error, Error::TextTooLong { text: 0, max_tokens: 3, .. }), "{error:?}");
    for got in [0, 9] {
        let error = embed(strings(&["a"]), EmbedOptions::new().max_tokens(got));
        assert!(matches!(error, Error::Setting { min: 1, max: 8, .. }), "{error:?}");
    }

    let error = embed(tokens(&[&[0], &[]]), plain.clone());
    assert!(matches!(error, Error::Model(ModelError::EmptyText { text: 1 })), "{error:?}");
    let error = embed(tokens(&[&[0, u32::MAX]]), plain.clone());
    let out_of_range =
        ModelError::TokenOutOfRange { text: 0, position: 1, id: u32::MAX, vocab_size: 0 };
    assert_eq!(
        error.to_string().split_once("below").unwrap().0,
        out_of_range.to_string().split_once("below").unwrap().0
    );
    let error = embed(strings(&["a"]), EmbedOptions::new().dimensions(1 << 20));
    assert!(matches!(error, Error::Dimensions { got: 1_048_576, .. }), "{error:?}");
    let prompt = Prompt::Named("nonsense".to_owned());
    let error = embed(strings(&["a"]), EmbedOptions::new().prompt(prompt));
    assert!(matches!(error, Error::NoSuchPrompt { .. }), "{error:?}");
    let spaces = [" ".repeat(600_000)];
    let error = embed(strings(&["a", &spaces[0]]), plain.clone());
    assert!(matches!(error, Error::Text(TextError::WhiteSpace { text: 1, .. })), "{error:?}");

    // The service still works after all these errors.
    let embedded = block_on(service.embed(strings(&[]), plain.clone())).unwrap();
    assert!(embedded.embeddings.is_empty());
    assert_eq!(block_on(service.embed(strings(&["a"]), plain)).unwrap().embeddings.len(), 1);
    assert_eq!((service.state(), service.waiting_texts()), (ServiceState::Running, 0));
}

#[test]
fn texts_of_several_callers_share_a_batch() {
    let options = ServiceOptions::new().tokenizer_threads(1);
    let (service, reports, go) = stepwise(options);
    let mut context = Context::from_waker(Waker::noop());
    let embed = |texts: Vec<Text<'static>>| Box::pin(service.embed(texts, EmbedOptions::new()));
    let mut first = embed(strings(&["first"]));
    assert!(first.as_mut().poll(&mut context).is_pending());
    wait_for(&reports, 1);
    let mut callers = ["a", "b", "c"].map(|text| embed(strings(&[text])));
    for caller in &mut callers {
        assert!(caller.as_mut().poll(&mut context).is_pending());
    }
    // The only tokenizer thread tokenizes this request last, so the other requests are in the queue when it fails.
    block_on(embed(tokens(&[&[]]))).unwrap_err();
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
    let (service, reports, go) = stepwise(ServiceOptions::new());
    let mut context = Context::from_waker(Waker::noop());
    let first = service.embed(strings(&["first"]), EmbedOptions::new());
    let mut first = pin!(first);
    assert!(first.as_mut().poll(&mut context).is_pending());
    wait_for(&reports, 1);
    {
        let gone = pin!(service.embed(strings(&["a", "b", "c"]), EmbedOptions::new()));
        assert!(gone.poll(&mut context).is_pending());
        assert_eq!(service.waiting_texts(), 3);
    }
    assert_eq!(service.waiting_texts(), 0);
    drop(go);
    assert!(matches!(first.poll(&mut context), Poll::Ready(Ok(_))));
    block_on(service.embed(strings(&["last"]), EmbedOptions::new())).unwrap();
    wait_for(&reports, 2);
    let n_texts: Vec<usize> = reports.lock().unwrap().iter().map(|report| report.n_texts).collect();
    assert_eq!(n_texts, [1, 1]);
}

#[test]
fn full_queue_rejects_request_and_suggests_a_delay() {
    let options = ServiceOptions::new().max_waiting_texts(2);
    let (service, reports, go) = stepwise(options);
    let mut context = Context::from_waker(Waker::noop());
    let embed = |texts: &[&str]| Box::pin(service.embed(strings(texts), EmbedOptions::new()));
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
    assert_eq!(block_on(large).unwrap().embeddings.len(), 5);
    block_on(embed(&["late"])).unwrap();
}

#[test]
fn draining_finishes_accepted_requests() {
    let service = service(ServiceOptions::new().batch_tokens(1));
    let mut context = Context::from_waker(Waker::noop());
    let mut accepted = pin!(service.embed(strings(&["a"; 20]), EmbedOptions::new()));
    assert!(accepted.as_mut().poll(&mut context).is_pending());
    let drained = service.drain();
    let refused = block_on(service.embed(strings(&["b"]), EmbedOptions::new()));
    assert!(matches!(refused, Err(Error::ServiceDraining)), "{refused:?}");
    block_on(drained);
    assert_eq!(service.state(), ServiceState::Stopped);
    assert_eq!(block_on(accepted).unwrap().embeddings.len(), 20);
    let refused = block_on(service.embed(strings(&["b"]), EmbedOptions::new()));
    assert!(matches!(refused, Err(Error::ServiceStopped)), "{refused:?}");
    // A second call returns at once.
    block_on(service.drain());
}

#[test]
fn panic_of_the_worker_thread_fails_all_requests() {
    let (service, reports, go) = stepwise(ServiceOptions::new());
    let mut context = Context::from_waker(Waker::noop());
    let mut first = pin!(service.embed(strings(&["first"]), EmbedOptions::new()));
    assert!(first.as_mut().poll(&mut context).is_pending());
    wait_for(&reports, 1);
    let mut waiting = pin!(service.embed(strings(&["waiting"]), EmbedOptions::new()));
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    service.panic();
    drop(go);
    block_on(first).unwrap();
    let lost = block_on(waiting);
    assert!(matches!(lost, Err(Error::ServiceStopped)), "{lost:?}");
    assert_eq!(service.state(), ServiceState::Stopped);
    let refused = block_on(service.embed(strings(&["late"]), EmbedOptions::new()));
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
    let service = service(ServiceOptions::new().on_batch(move |_| {
        let _ = &signal;
    }));
    let second = service.clone();
    drop(service);
    block_on(second.embed(strings(&["still"]), EmbedOptions::new())).unwrap();
    assert!(end.try_recv().is_err());
    drop(second);
    end.recv().unwrap();
}

#[test]
fn service_gives_the_scores_of_the_reranker() {
    let direct = reranker();
    let service = reranker().into_service(ServiceOptions::new()).unwrap();
    let (query, documents) = ("the capital of China", ["Beijing", "gravity", "Paris"]);
    let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let options = ScoreOptions::new().instruction("Find it");
    let scored =
        block_on(service.score(owned(&[query]), owned(&documents), options.clone())).unwrap();
    let pairs = documents.map(|document| (query, document));
    assert_eq!(scored.scores, direct.score_with(&pairs, &options).unwrap());
    let ranked = direct.rank_with(query, &documents, &options).unwrap();
    assert_eq!(scored.scores.ranked(), ranked);

    let paired = block_on(service.score(owned(&["a", "b"]), owned(&["c", "d"]), options.clone()));
    let pairs = [("a", "c"), ("b", "d")];
    assert_eq!(paired.unwrap().scores, direct.score_with(&pairs, &options).unwrap());
    let error = block_on(service.score(owned(&["a", "b"]), owned(&["c"]), options)).unwrap_err();
    assert!(matches!(error, Error::Pairs { queries: 2, documents: 1 }), "{error:?}");
    // `max_document_tokens` truncates each document.
    let long = ["Beijing is the capital of China, and has been for long", "gravity"];
    let cut = long.map(|document| direct.tokenizer().cut(document, 3).unwrap());
    assert!(
        cut[0].len() < long[0].len()
            && direct.tokenizer().pieces(cut[0], SpecialTokens::PlainText).unwrap().len() == 4
    );
    let options = ScoreOptions::new().max_document_tokens(3);
    let scored = block_on(service.score(owned(&[query]), owned(&long), options.clone())).unwrap();
    let pairs = cut.map(|document| (query, document));
    assert_eq!(scored.scores, direct.score_with(&pairs, &ScoreOptions::new()).unwrap());
    assert_eq!(scored.scores.ranked(), direct.rank_with(query, &long, &options).unwrap());

    let options = ScoreOptions::new().max_tokens(0);
    let error = block_on(service.score(owned(&["a"]), owned(&["c"]), options)).unwrap_err();
    assert!(matches!(error, Error::Setting { setting: "max_tokens", got: 0, .. }), "{error:?}");
}

#[test]
fn rejects_settings_out_of_range() {
    let settings = [
        ("batch_tokens", ServiceOptions::new().batch_tokens(0)),
        ("max_waiting_texts", ServiceOptions::new().max_waiting_texts(0)),
        ("tokenizer_threads", ServiceOptions::new().tokenizer_threads(0)),
        ("tokenizer_threads", ServiceOptions::new().tokenizer_threads(1025)),
    ];
    for (expected, options) in settings {
        let error = embedder().into_service(options).unwrap_err();
        assert!(
            matches!(error, Error::Setting { setting, .. } if setting == expected),
            "{error:?}"
        );
    }
}
