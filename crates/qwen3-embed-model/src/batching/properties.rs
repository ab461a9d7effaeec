//! Properties of the plans of random calls.
//!
//! The environment variable `PROPTEST_CASES` is the number of calls of each test, 256 by default.

use std::collections::HashSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::plan::{Plan, order, shared, whole};
use super::prefix_cache::{Prefix, PrefixCache};

/// The most tokens that a text computes although the text before it has them, too: a shared segment has at least four
/// tokens.
const MAX_REPEATED: usize = 3;

/// The settings of the tests. Inputs that violate a property are printed and not stored: they become tests of their own.
fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

/// Texts that often begin with the same tokens: each is a part of one of a few beginnings, and a few tokens of its own.
fn texts() -> impl Strategy<Value = Vec<Vec<u32>>> {
    calls(1).prop_map(|mut calls| calls.remove(0))
}

/// The texts of one to `max_calls` calls, which have the same beginnings.
fn calls(max_calls: usize) -> impl Strategy<Value = Vec<Vec<Vec<u32>>>> {
    let beginnings = vec(vec(0u32..2, 1..200), 1..4);
    let text = (0usize..4, 0usize..200, vec(0u32..2, 0..9), 0u32..2);
    (beginnings, vec(vec(text, 0..24), 1..=max_calls)).prop_map(|(beginnings, calls)| {
        let text = |(which, n_shared, own, last): (usize, usize, Vec<u32>, u32)| {
            let beginning = &beginnings[which % beginnings.len()];
            [&beginning[..n_shared.min(beginning.len())], &own, &[last]].concat()
        };
        calls.into_iter().map(|call| call.into_iter().map(text).collect()).collect()
    })
}

/// The token of each row of a batch, from the tokens that are computed and the prefixes that are given. Every row has
/// exactly one token.
fn tokens_of_rows(plan: &Plan) -> Vec<u32> {
    let batch = &plan.batch;
    let mut tokens = vec![None; batch.n_rows()];
    let mut set = |row: usize, token: u32| assert_eq!(tokens[row].replace(token), None, "{row}");
    for given in &plan.given {
        for (row, position) in (given.row..).zip(given.tokens.clone()) {
            assert!(row < batch.n_given());
            set(row, given.prefix.tokens[position]);
        }
    }
    assert_eq!(plan.ids.len(), batch.n_tokens());
    for (row, &id) in (batch.n_given()..).zip(&plan.ids) {
        set(row, id);
    }
    tokens.into_iter().map(Option::unwrap).collect()
}

/// Checks that the rows of each text of a batch have its tokens, and that its last token is computed.
fn check_texts(plan: &Plan, texts: &[Vec<u32>]) {
    let (batch, tokens) = (&plan.batch, tokens_of_rows(plan));
    let (last_rows, first_last) = (batch.last_rows(), batch.n_rows() - batch.n_last());
    for &(text, last) in &plan.texts {
        let row = if batch.n_last() > 0 { first_last + last } else { last_rows[last] as usize };
        assert!(row >= batch.n_given());
        let segment = last_rows.iter().position(|&end| end as usize == row).unwrap();
        let spelled: Vec<u32> = batch.path(segment).map(|row| tokens[row]).collect();
        assert_eq!(spelled, texts[text], "text {text}");
    }
}

/// The number of different beginnings of texts: the fewest tokens that have to be computed.
fn n_beginnings(texts: &[&[u32]]) -> usize {
    let beginnings = texts.iter().flat_map(|text| (1..=text.len()).map(|n| &text[..n]));
    beginnings.collect::<HashSet<_>>().len()
}

/// Checks the prefixes that a batch puts into a cache.
fn check_kept(plan: &Plan, texts: &[Vec<u32>], max_kept: usize) {
    let tokens = tokens_of_rows(plan);
    for kept in &plan.kept {
        assert!((1..=max_kept).contains(&kept.tokens.len()));
        let spelled: Vec<u32> = kept.rows.iter().map(|&row| tokens[row]).collect();
        assert_eq!(spelled, kept.tokens);
        let mut own = plan.texts.iter().map(|&(text, _)| &texts[text]);
        assert!(own.any(|text| text.len() > kept.tokens.len() && text.starts_with(&kept.tokens)));
    }
    let n_tokens: usize = plan.kept.iter().map(|kept| kept.tokens.len()).sum();
    assert!(n_tokens <= 2 * max_kept);
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn batches_without_sharing_contain_every_text_once_in_order(
        texts in texts(),
        budget in 0usize..400,
    ) {
        let mut start = 0;
        while start < texts.len() {
            let plan = whole(&texts, start, budget).unwrap();
            let n = plan.texts.len();
            prop_assert!(plan.texts.iter().map(|&(text, _)| text).eq(start..start + n));
            prop_assert!(n == 1 || n > 1 && plan.ids.len() <= budget);
            // The next text would not have fitted.
            let next = texts.get(start + n).map_or(usize::MAX, Vec::len);
            prop_assert!(plan.ids.len().saturating_add(next) > budget);
            check_texts(&plan, &texts);
            start += n;
        }
    }

    #[test]
    fn batches_with_sharing_contain_every_text_once_and_compute_beginnings_once(
        texts in texts(),
        budget in prop_oneof![0usize..400, Just(usize::MAX)],
    ) {
        let known = PrefixCache::new(0, 1).known();
        let order = order(&texts);
        prop_assert!(order.is_sorted_by_key(|&text| &texts[text]));
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            let (plan, n) = shared(&texts, rest, budget, &known, 0).unwrap();
            prop_assert!(plan.texts.iter().map(|&(text, _)| text).eq(rest[..n].iter().copied()));
            prop_assert!(n == 1 || n > 1 && plan.ids.len() <= budget);
            prop_assert!(plan.given.is_empty() && plan.kept.is_empty());
            check_texts(&plan, &texts);
            let own: Vec<&[u32]> = rest[..n].iter().map(|&text| texts[text].as_slice()).collect();
            let least = n_beginnings(&own);
            prop_assert!((least..=least + MAX_REPEATED * (n - 1)).contains(&plan.ids.len()));
            rest = &rest[n..];
        }
    }

    #[test]
    fn batches_with_a_cache_give_or_compute_every_token(
        calls in calls(4),
        budget in prop_oneof![0usize..400, Just(usize::MAX)],
        capacity in 0usize..600,
    ) {
        let cache = PrefixCache::new(capacity, 1);
        for texts in &calls {
            let (known, order, max_kept) = (cache.known(), order(texts), cache.max_tokens());
            let mut rest = order.as_slice();
            let mut kept = Vec::new();
            while !rest.is_empty() {
                let (plan, n) = shared(texts, rest, budget, &known, max_kept).unwrap();
                let planned = plan.texts.iter().map(|&(text, _)| text);
                prop_assert!(planned.eq(rest[..n].iter().copied()));
                prop_assert!(n == 1 || n > 1 && plan.ids.len() <= budget);
                check_texts(&plan, texts);
                check_kept(&plan, texts, max_kept);
                let own: Vec<&[u32]> =
                    rest[..n].iter().map(|&text| texts[text].as_slice()).collect();
                // Given tokens take the place of computed ones.
                let least = n_beginnings(&own);
                let n_rows = plan.batch.n_rows();
                prop_assert!((least..=least + MAX_REPEATED * (n - 1)).contains(&n_rows));
                kept.extend(plan.kept);
                rest = &rest[n..];
            }
            for kept in kept {
                cache.insert(Prefix { tokens: kept.tokens.clone(), layers: Vec::new() });
                // The newest prefix is in the cache, as itself or as the beginning of another one.
                let common = cache.known().longest(&kept.tokens).map_or(0, |(_, n)| n);
                prop_assert_eq!(common, kept.tokens.len());
                prop_assert!(cache.counts()[2] as usize <= capacity);
            }
            cache.note_texts(texts.iter().map(Vec::as_slice));
        }
    }
}
