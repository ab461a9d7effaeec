use std::ops::Range;

use super::request::Row;
use super::tokenizing::pieces;
use super::{Compute, Service, ServiceOptions, Timings, start};
use crate::engine::check;
use crate::reranker::{ranked, sigmoid};
use crate::{Error, RankedDocument, Reranker, Result};

/// How [`Service::score`] scores.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScoreOptions {
    /// What is asked of a document, in a sentence, best in English. Default:
    /// [`Reranker::default_instruction`].
    pub instruction: Option<String>,
    /// The longest prompt, in tokens: a document that makes it longer is cut. 1 to the reranker's
    /// [`max_tokens`](Reranker::max_tokens), which is the default.
    pub max_tokens: Option<usize>,
    /// How many tokens of each document are read at most, at least 1. Default: as many as the prompt has
    /// room for.
    pub max_document_tokens: Option<usize>,
}

/// What [`Service::score`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The logit of each pair, see [`RankedDocument::logit`].
    pub logits: Vec<f32>,
    /// The tokens of each pair's prompt.
    pub n_tokens: Vec<usize>,
    /// How long it took.
    pub timings: Timings,
}

impl Scored {
    /// The pairs, those with the highest score first, and in their order where scores are equal.
    pub fn ranked(&self) -> Vec<RankedDocument> {
        ranked(&self.logits)
    }

    /// The score of each pair, from 0 to 1: the sigmoid of its logit.
    pub fn scores(&self) -> Vec<f32> {
        self.logits.iter().map(|&logit| sigmoid(logit)).collect()
    }
}

impl Compute for Reranker {
    fn compute(
        &self,
        texts: &[&[u32]],
        write: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Result<()> {
        let logits = self.logits_of(texts)?;
        logits.into_iter().enumerate().for_each(|(text, logit)| write(text, &[logit]));
        Ok(())
    }
}

impl Reranker {
    /// Puts the reranker behind a queue, for many callers at once.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if an option is out of range; [`Error::Threads`] or [`Error::Thread`] if the
    /// threads cannot be started.
    pub fn into_service(self, options: ServiceOptions) -> Result<Service<Self>> {
        start(self, options)
    }
}

impl Service<Reranker> {
    /// Scores one query with each document, or as many queries, each with the document at its place.
    ///
    /// # Errors
    ///
    /// [`Error::ServiceFull`], [`Error::ServiceDraining`] or [`Error::ServiceStopped`] if they are not
    /// accepted; [`Error::Pairs`] if there is neither one query nor one for each document;
    /// [`Error::Setting`] if `max_tokens` is out of range; [`Error::Text`] or [`Error::Model`] as for
    /// [`Reranker::scores`], naming the index of the pair.
    pub async fn score(
        &self,
        queries: Vec<String>,
        documents: Vec<String>,
        options: ScoreOptions,
    ) -> Result<Scored> {
        let n_pairs = documents.len();
        if queries.len() != 1 && queries.len() != n_pairs {
            return Err(Error::Pairs { queries: queries.len(), documents: n_pairs });
        }
        let limit = self.model().max_tokens();
        let max_tokens = options.max_tokens.unwrap_or(limit);
        check("max_tokens", max_tokens, limit)?;
        let max_document_tokens = options.max_document_tokens;
        check("max_document_tokens", max_document_tokens.unwrap_or(1), usize::MAX)?;
        let instruction =
            options.instruction.unwrap_or_else(|| self.model().default_instruction().to_owned());
        let pairs = queries.iter().cycle().zip(&documents);
        let length = |(query, document): (&String, &String)| {
            instruction.len() + query.len() + document.len()
        };
        let pieces = pieces(pairs.map(length));
        let encode = move |reranker: &Reranker, piece: Range<usize>| {
            let documents = reranker.cut(&documents[piece.clone()], max_document_tokens)?;
            let queries = queries.iter().cycle().skip(piece.start % queries.len());
            let pairs: Vec<_> = queries.map(String::as_str).zip(documents).collect();
            reranker.encode(&instruction, &pairs, max_tokens)
        };
        let row = Row { width: 1, normalize: false };
        let completed = self.run(pieces, row, encode).await?;
        let (logits, n_tokens) = (completed.values, completed.n_tokens);
        Ok(Scored { logits, n_tokens, timings: completed.timings })
    }
}
