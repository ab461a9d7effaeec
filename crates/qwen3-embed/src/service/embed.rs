use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::tokenize::pieces;
use super::{Compute, Service, ServiceOptions, Timings, start};
use crate::{EmbedOptions, Embedder, Embeddings, Result, Text};

/// The result of [`Service::embed`]: the vectors of the texts, and how long the request took.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Embedded {
    /// The vectors and token counts of the texts, in the order of the texts.
    pub embeddings: Embeddings,
    /// How long the stages of the request took.
    pub timings: Timings,
}

impl Compute for Embedder {
    fn compute(
        &self,
        texts: &[&[u32]],
        write: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Result<()> {
        Ok(self.engine.compute(|| self.engine.model.forward_each(texts, write))?)
    }
}

impl Embedder {
    /// Puts the embedder behind a queue that many callers can use at the same time.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) if an option is out of range;
    /// [`Error::Threads`](crate::Error::Threads) or [`Error::Thread`](crate::Error::Thread) if the threads cannot be
    /// started.
    pub fn into_service(self, options: ServiceOptions) -> Result<Service<Self>> {
        start(self, options)
    }
}

impl Service<Embedder> {
    /// Embeds texts, which are strings or lists of token ids. The vectors are the same as those of
    /// [`Embedder::embed_with`].
    ///
    /// # Errors
    ///
    /// [`Error::ServiceFull`](crate::Error::ServiceFull), [`Error::ServiceDraining`](crate::Error::ServiceDraining)
    /// or [`Error::ServiceStopped`](crate::Error::ServiceStopped) if the service does not accept the request, and the
    /// errors of [`Embedder::embed_with`].
    pub async fn embed(
        &self,
        texts: impl IntoIterator<Item: Into<Text<'static>>>,
        options: EmbedOptions,
    ) -> Result<Embedded> {
        let request = self.model().request(&options)?;
        let (row, prompt_bytes) = (request.row, request.prompt.len());
        let texts: Vec<Text<'static>> = texts.into_iter().map(Into::into).collect();
        let pieces = pieces(texts.iter().map(|text| prompt_bytes + text.n_bytes()));
        let mut texts = texts.into_iter();
        let encode = move |embedder: &Embedder, piece: Range<usize>| {
            let piece = texts.by_ref().take(piece.len()).collect();
            let tokens = embedder.tokenize_each(piece, &request);
            let tokens: Vec<Vec<u32>> =
                tokens.map(|tokens| tokens.map(Cow::into_owned)).collect::<Result<_>>()?;
            embedder.engine.model.check_tokens(&tokens)?;
            Ok(tokens)
        };
        let completed = self.run(pieces, row, encode).await?;
        let embeddings = Embeddings::of_texts(completed.values, row.dimensions, completed.n_tokens);
        Ok(Embedded { embeddings, timings: completed.timings })
    }
}
