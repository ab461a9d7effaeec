use crate::{Error, Result};

/// Computes `n_texts` texts in batches. `compute` is called with the number of texts that are done and with the budget
/// of the next batch in tokens, and returns the number of texts that it has computed.
///
/// If the device has no memory for a batch, half of the tokens of this batch become the budget of this batch and of all
/// later batches. This happens at most once per call.
pub(crate) fn in_batches(
    n_texts: usize,
    mut budget: usize,
    mut compute: impl FnMut(usize, usize) -> Result<usize>,
) -> Result<()> {
    let (mut n_done, mut was_halved) = (0, false);
    while n_done < n_texts {
        match compute(n_done, budget) {
            Ok(n) => n_done += n,
            Err(Error::OutOfMemory { n_tokens, .. }) if !was_halved && n_tokens > 1 => {
                (budget, was_halved) = (n_tokens / 2, true);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use qwen3_embed_kernels::Error as KernelError;

    use super::*;

    fn out_of_memory(n_tokens: usize) -> Error {
        let source = candle_core::Error::Msg("no memory".into());
        Error::OutOfMemory {
            n_tokens,
            needed_bytes: n_tokens << 20,
            free_bytes: 3 << 20,
            fitting_tokens: 3,
            source: Some(Box::new(KernelError::OutOfMemory(source))),
        }
    }

    /// Computes texts of one token each on a device that has memory for `room` tokens.
    fn batches(n_texts: usize, budget: usize, room: usize) -> (Vec<usize>, Result<()>) {
        let mut batches = Vec::new();
        let result = in_batches(n_texts, budget, |n_done, budget| {
            let n = budget.min(n_texts - n_done);
            if n > room {
                return Err(out_of_memory(n));
            }
            batches.push(n);
            Ok(n)
        });
        (batches, result)
    }

    #[test]
    fn halves_the_budget_once_if_the_device_is_out_of_memory() {
        for (budget, room, expected) in
            [(10, 10, vec![10, 10, 5]), (10, 9, vec![5; 5]), (usize::MAX, 12, vec![12, 12, 1])]
        {
            let (batches, result) = batches(25, budget, room);
            result.unwrap();
            assert_eq!(batches, expected);
        }
        let (batches, result) = batches(25, 10, 4);
        let error = result.unwrap_err();
        assert!(batches.is_empty() && matches!(error, Error::OutOfMemory { n_tokens: 5, .. }));
        let expected = "a batch of 5 tokens needs about 5 MiB of memory, and 3 MiB are left: a batch \
                        of 3 tokens would fit";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn fails_if_a_single_token_does_not_fit() {
        let (batches, result) = batches(3, 1, 0);
        assert!(batches.is_empty());
        assert!(matches!(result, Err(Error::OutOfMemory { n_tokens: 1, .. })));
    }
}
