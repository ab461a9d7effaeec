use std::ops::Range;

use super::tokenize::pieces;
use super::{Compute, Service, ServiceOptions, Timings, start};
use crate::embed_request::RowFormat;
use crate::{Error, Reranker, Result, ScoreOptions, Scores};

/// The result of [`Service::score`]: the scores of the pairs, and how long the request took.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Scored {
    /// The scores and token counts of the pairs, in the order of the pairs.
    pub scores: Scores,
    /// How long the stages of the request took.
    pub timings: Timings,
}

impl Compute for Reranker {
    fn compute(
        &self,
        texts: &[&[u32]],
        write: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Result<()> {
        let logits = self.logits(texts)?;
        logits.into_iter().enumerate().for_each(|(text, logit)| write(text, &[logit]));
        Ok(())
    }
}

impl Reranker {
    /// Puts the reranker behind a queue that many callers can use at the same time.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if an option is out of range; [`Error::Threads`] or [`Error::Thread`] if the threads cannot
    /// be started.
    pub fn into_service(self, options: ServiceOptions) -> Result<Service<Self>> {
        start(self, options)
    }
}

impl Service<Reranker> {
    /// Scores pairs of a query and a document: one query with each of the documents, or each query with the document
    /// of the same index. The scores are the same as those of [`Reranker::score_with`].
    ///
    /// # Errors
    ///
    /// [`Error::ServiceFull`], [`Error::ServiceDraining`] or [`Error::ServiceStopped`] if the service does not accept
    /// the request; [`Error::Pairs`] if there is neither one query nor one query for each document; and the errors of
    /// [`Reranker::score_with`].
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
        let request = self.model().request(&options)?;
        let pairs = queries.iter().cycle().zip(&documents);
        let length = |(query, document): (&String, &String)| {
            request.instruction.len() + query.len() + document.len()
        };
        let pieces = pieces(pairs.map(length));
        let encode = move |reranker: &Reranker, piece: Range<usize>| {
            let queries = queries.iter().cycle().skip(piece.start % queries.len());
            let pairs = queries.zip(&documents[piece]);
            let pairs: Vec<(&str, &str)> =
                pairs.map(|(query, document)| (query.as_str(), document.as_str())).collect();
            reranker.encode(&pairs, &request)
        };
        let row = RowFormat { dimensions: 1, normalize: false };
        let completed = self.run(pieces, row, encode).await?;
        let scores = Scores::new(completed.values, completed.n_tokens);
        Ok(Scored { scores, timings: completed.timings })
    }
}
