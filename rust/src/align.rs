//! Vocabulary alignment: a matching source token or a cover for every target token.
use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::cover::{CoverBuilder, Scratch};
use crate::index::{Index, IndexedVocabulary};
use crate::token::{Vocabulary, BYTE_PIECE, SPECIAL};

/// How a target token matches its source token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MatchKind {
    /// There is no source token.
    None = 0,
    /// Same canonical bytes.
    Exact = 1,
    /// Same canonical bytes except for the leading space.
    WordStart = 2,
    /// Same lower-cased text, with or without the leading space.
    Case = 3,
    /// A given pair, or two special tokens of the same spelling.
    Role = 4,
    /// Same canonical byte; at least one of the two is a byte-fallback piece.
    Byte = 5,
}

/// The loosest kind of match that is accepted. Each one accepts the stricter ones too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Overlap {
    /// Same canonical bytes.
    Exact,
    /// The leading space may differ.
    WordStart,
    /// The case may differ as well.
    Case,
}

/// The result of [`align`] for `T` target ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alignment {
    /// [`MatchKind`] of each target id, `[T]`.
    pub match_kind: Vec<u8>,
    /// Source id of each target id, or -1, `[T]`.
    pub source_id: Vec<i32>,
    /// Covers of the target tokens without a source token; the others have empty covers.
    pub covers: Covers,
}

/// Covers of `n` tokens: cover `i` is `ids[offsets[i]..offsets[i + 1]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Covers {
    /// Start of each cover in `ids`, then the end of the last, `[n + 1]`.
    pub offsets: Vec<i64>,
    /// Source ids of all covers, joined.
    pub ids: Vec<i32>,
}

/// Aligns `target` to `source`.
///
/// `roles` are pairs (target id, source id) that match whatever their text is. Of several pairs with one target id the first
/// counts; a pair with an id outside its vocabulary is ignored. Covers are computed if `with_covers` is set. The result does
/// not depend on the number of threads.
pub fn align(
    source: &IndexedVocabulary,
    target: &Vocabulary,
    overlap: Overlap,
    roles: &[(u32, u32)],
    with_covers: bool,
) -> Alignment {
    source.prepare(with_covers);
    let index = source.index();
    let source_vocabulary = source.vocabulary();
    let lower_cased = (overlap == Overlap::Case).then(|| lower_case_index(source_vocabulary));
    // Descending, so that the smallest id of equal spellings stays.
    let specials: FxHashMap<&[u8], u32> = (0..source_vocabulary.size())
        .rev()
        .filter(|&id| source_vocabulary.flags[id] & SPECIAL != 0)
        .map(|id| (source_vocabulary.spelling.get(id), id as u32))
        .collect();
    let mut role_of_target: FxHashMap<usize, u32> = FxHashMap::default();
    for &(target_id, source_id) in roles {
        if (target_id as usize) < target.size() && (source_id as usize) < source_vocabulary.size() {
            role_of_target.entry(target_id as usize).or_insert(source_id);
        }
    }
    let match_token = |token: usize| -> (MatchKind, i32) {
        let matched = if let Some(&id) = role_of_target.get(&token) {
            Some((id, MatchKind::Role))
        } else if target.flags[token] & SPECIAL != 0 {
            specials.get(target.spelling.get(token)).map(|&id| (id, MatchKind::Role))
        } else if target.is_text(token) {
            text_match(&index, lower_cased.as_ref(), target, token, overlap)
        } else {
            None
        };
        matched.map_or((MatchKind::None, -1), |(id, kind)| (kind, id as i32))
    };
    let matches: Vec<(MatchKind, i32)> = (0..target.size()).into_par_iter().map(match_token).collect();
    let match_kind = matches.iter().map(|&(kind, _)| kind as u8).collect();
    let source_id: Vec<i32> = matches.iter().map(|&(_, id)| id).collect();
    let covers = if with_covers {
        cover_unmatched(&CoverBuilder::new(source), target, &source_id)
    } else {
        Covers { offsets: vec![0; target.size() + 1], ids: Vec::new() }
    };
    Alignment { match_kind, source_id, covers }
}

/// The strictest match of text token `token` that `overlap` accepts.
fn text_match(
    index: &Index<'_>,
    lower_cased: Option<&FxHashMap<Vec<u8>, u32>>,
    target: &Vocabulary,
    token: usize,
    overlap: Overlap,
) -> Option<(u32, MatchKind)> {
    let bytes = target.canonical.get(token);
    if let Some(matched) = exact_match(index, target, token, bytes) {
        return Some(matched);
    }
    if overlap == Overlap::Exact || target.flags[token] & BYTE_PIECE != 0 {
        return None;
    }
    let toggled = toggle_word_start(bytes);
    if let Some(id) = toggled.as_deref().and_then(|bytes| index.smallest_without(BYTE_PIECE, bytes)) {
        return Some((id, MatchKind::WordStart));
    }
    let lower_cased = lower_cased?;
    let find = |bytes: &[u8]| lower_cased.get(&lower_case(bytes)?).copied();
    find(bytes).or_else(|| find(toggled.as_deref()?)).map(|id| (id, MatchKind::Case))
}

/// The source token of the same canonical bytes.
///
/// Of several the one of the same spelling (between tokenizers of one kind), then one that is a byte-fallback piece if and only
/// if the target token is, then the smallest id. Empty canonical bytes match only by spelling.
fn exact_match(index: &Index<'_>, target: &Vocabulary, token: usize, bytes: &[u8]) -> Option<(u32, MatchKind)> {
    let source = index.vocabulary;
    let flags = target.flags[token];
    let spelling = target.spelling.get(token);
    let preference = |id: u32| {
        let differs_in_class = (source.flags[id as usize] ^ flags) & BYTE_PIECE != 0;
        let same_spelling = source.kind == target.kind && source.spelling.get(id as usize) == spelling;
        (differs_in_class || !same_spelling, differs_in_class, id)
    };
    let id = index.ids(bytes).min_by_key(|&id| preference(id))?;
    if bytes.is_empty() && preference(id).0 {
        return None;
    }
    let is_byte = (flags | source.flags[id as usize]) & BYTE_PIECE != 0;
    Some((id, if is_byte { MatchKind::Byte } else { MatchKind::Exact }))
}

/// The bytes with the leading space removed, or added if there is none; `None` where that leaves no text.
fn toggle_word_start(bytes: &[u8]) -> Option<Vec<u8>> {
    match bytes {
        [] | [b' '] => None,
        [b' ', rest @ ..] => Some(rest.to_vec()),
        _ => Some([b" ", bytes].concat()),
    }
}

/// The text in lower case; `None` for bytes that are not valid UTF-8.
fn lower_case(bytes: &[u8]) -> Option<Vec<u8>> {
    std::str::from_utf8(bytes).ok().map(|text| text.to_lowercase().into_bytes())
}

/// The smallest id of each lower-cased text, among text tokens that are not byte-fallback pieces.
fn lower_case_index(source: &Vocabulary) -> FxHashMap<Vec<u8>, u32> {
    let mut map = FxHashMap::default();
    for id in (0..source.size()).filter(|&id| source.is_text(id) && source.flags[id] & BYTE_PIECE == 0) {
        if let Some(text) = lower_case(source.canonical.get(id)).filter(|text| !text.is_empty()) {
            map.entry(text).or_insert(id as u32);
        }
    }
    map
}

/// Covers of the text tokens without a source token.
fn cover_unmatched(builder: &CoverBuilder<'_>, target: &Vocabulary, source_id: &[i32]) -> Covers {
    collect_covers(target.size(), |token, scratch, ids| {
        if source_id[token] < 0 && target.is_text(token) {
            builder.cover(target.canonical.get(token), scratch, ids);
        }
    })
}

/// Covers of the target ids `tokens`, each without the source ids that are forbidden for it.
///
/// The ids forbidden for `tokens[i]` are `forbidden[offsets[i]..offsets[i + 1]]`, in any order. A token may have a source token;
/// special tokens and unused ids have empty covers. The result does not depend on the number of threads.
///
/// # Panics
///
/// If a token is not below the size of `target`, or the offsets are not `tokens.len() + 1` ascending positions in `forbidden`.
pub fn covers_without(
    source: &IndexedVocabulary,
    target: &Vocabulary,
    tokens: &[u32],
    offsets: &[usize],
    forbidden: &[u32],
) -> Covers {
    source.prepare(true);
    let builder = CoverBuilder::new(source);
    collect_covers(tokens.len(), |index, scratch, ids| {
        let token = tokens[index] as usize;
        if target.is_text(token) {
            let mut excluded = forbidden[offsets[index]..offsets[index + 1]].to_vec();
            excluded.sort_unstable();
            builder.cover_without(target.canonical.get(token), &excluded, scratch, ids);
        }
    })
}

/// Calls `push_cover(index, scratch, ids)`, which appends one cover to `ids`, for every index below `count`.
///
/// Threads work on blocks of indices; the blocks are joined in order.
fn collect_covers(count: usize, push_cover: impl Fn(usize, &mut Scratch, &mut Vec<u32>) + Sync) -> Covers {
    const BLOCK: usize = 2048;
    let blocks: Vec<(Vec<u32>, Vec<u32>)> = (0..count.div_ceil(BLOCK))
        .into_par_iter()
        .map(|block| {
            let range = block * BLOCK..((block + 1) * BLOCK).min(count);
            let mut ends = Vec::with_capacity(range.len());
            let mut ids = Vec::with_capacity(4 * range.len());
            let mut scratch = Scratch::default();
            for index in range {
                push_cover(index, &mut scratch, &mut ids);
                ends.push(ids.len() as u32);
            }
            (ends, ids)
        })
        .collect();
    let mut offsets = Vec::with_capacity(count + 1);
    offsets.push(0i64);
    let mut all_ids = Vec::with_capacity(blocks.iter().map(|(_, ids)| ids.len()).sum());
    for (ends, ids) in blocks {
        let start = all_ids.len() as i64;
        offsets.extend(ends.iter().map(|&end| start + i64::from(end)));
        all_ids.extend(ids.iter().map(|&id| id as i32));
    }
    Covers { offsets, ids: all_ids }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{tiktoken, tokenizer_json};
    use base64::Engine;
    use proptest::prelude::*;

    fn ranks(tokens: &[Vec<u8>]) -> IndexedVocabulary {
        let engine = base64::engine::general_purpose::STANDARD;
        let lines: Vec<String> =
            tokens.iter().enumerate().map(|(i, t)| format!("{} {i}\n", engine.encode(t))).collect();
        IndexedVocabulary::new(tiktoken::read(lines.concat().as_bytes(), "ranks", &[]).unwrap())
    }

    fn wordpiece(tokens: &[&str]) -> IndexedVocabulary {
        let vocab: serde_json::Map<_, _> = tokens.iter().zip(0..).map(|(t, i)| (t.to_string(), i.into())).collect();
        let file = serde_json::json!({"model": {"type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]"}});
        IndexedVocabulary::new(tokenizer_json::read(file.to_string().as_bytes(), "wordpiece", &[]).unwrap())
    }

    proptest! {
        #[test]
        fn exact_matches_are_the_equal_bytes(
            source in prop::collection::hash_set(prop::collection::vec(any::<u8>(), 1..4), 1..40),
            target in prop::collection::hash_set(prop::collection::vec(any::<u8>(), 1..4), 1..40),
        ) {
            let (source, target): (Vec<_>, Vec<_>) = (source.into_iter().collect(), target.into_iter().collect());
            let result = align(&ranks(&source), ranks(&target).vocabulary(), Overlap::Exact, &[], true);
            for (token, id) in result.source_id.iter().enumerate() {
                let expected = source.iter().position(|s| *s == target[token]).map_or(-1, |i| i as i32);
                prop_assert_eq!(*id, expected);
                let Covers { offsets, ids } = &result.covers;
                let cover = &ids[offsets[token] as usize..offsets[token + 1] as usize];
                let spelled: Vec<u8> = cover.iter().flat_map(|&i| source[i as usize].clone()).collect();
                if *id >= 0 {
                    prop_assert!(spelled.is_empty());
                } else if !cover.is_empty() {
                    prop_assert_eq!(&spelled, &target[token]);
                } else {
                    prop_assert!(target[token].iter().any(|b| !source.contains(&vec![*b])));
                }
            }
        }

        /// Compares the merge algorithm with its definition: merge the pair of the smallest rank, the leftmost of equal ranks.
        #[test]
        fn merging_follows_the_definition(
            longer in prop::collection::hash_set(prop::collection::vec(97u8..100, 2..6), 0..30),
            text in prop::collection::vec(97u8..100, 1..200),
        ) {
            let mut tokens: Vec<Vec<u8>> = (97u8..100).map(|b| vec![b]).collect();
            tokens.extend(longer);
            let rank = |bytes: &[u8]| tokens.iter().position(|t| t == bytes);
            let mut parts: Vec<Vec<u8>> = text.iter().map(|b| vec![*b]).collect();
            loop {
                let best = (0..parts.len().saturating_sub(1))
                    .filter_map(|i| rank(&[&parts[i][..], &parts[i + 1][..]].concat()).map(|r| (r, i)))
                    .min();
                let Some((_, at)) = best else { break };
                let next = parts.remove(at + 1);
                parts[at].extend(next);
            }
            let expected: Vec<u32> = parts.iter().map(|p| rank(p).unwrap() as u32).collect();
            let vocabulary = ranks(&tokens);
            let mut out = Vec::new();
            CoverBuilder::new(&vocabulary).cover(&text, &mut Scratch::default(), &mut out);
            prop_assert_eq!(out, expected);
        }

        /// A cover without some ids is the cover by a vocabulary without these tokens. The test gives these tokens another
        /// spelling instead of removing them, so that the ranks stay.
        #[test]
        fn covers_without_ids_are_those_of_a_smaller_vocabulary(
            tokens in prop::collection::hash_set(prop::collection::vec(97u8..100, 1..4), 1..30),
            texts in prop::collection::vec(prop::collection::vec(97u8..100, 1..12), 1..6),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let tokens: Vec<Vec<u8>> = tokens.into_iter().collect();
            let mut texts = texts;
            texts.sort();
            texts.dedup();
            let forbidden: Vec<u32> = picks.iter().map(|pick| pick.index(tokens.len()) as u32).collect();
            let mut fewer = tokens.clone();
            for &id in &forbidden {
                fewer[id as usize] = vec![0, id as u8];
            }
            let target = ranks(&texts);
            let all: Vec<u32> = (0..texts.len() as u32).collect();
            let counts: Vec<usize> = (0..=texts.len()).map(|i| i * forbidden.len()).collect();
            let result = covers_without(&ranks(&tokens), target.vocabulary(), &all, &counts, &forbidden.repeat(texts.len()));
            let none = vec![0; texts.len() + 1];
            let expected = covers_without(&ranks(&fewer), target.vocabulary(), &all, &none, &[]);
            prop_assert_eq!(&result, &expected);
            prop_assert!(result.ids.iter().all(|&id| !forbidden.contains(&(id as u32))));
        }

        #[test]
        fn any_bytes_are_refused_or_read(data in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = tokenizer_json::read(&data, "x", &[]);
            let _ = tiktoken::read(&data, "x", &[]);
        }
    }

    #[test]
    fn wordpiece_takes_the_longest_piece_and_continuations_only_inside() {
        let source = wordpiece(&["[UNK]", "un", "una", "##a", "##able", "##ble"]);
        let target = wordpiece(&["[UNK]", "unable", "##ablea", "able"]);
        let result = align(&source, target.vocabulary(), Overlap::Exact, &[], true);
        assert_eq!(result.source_id, [0, -1, -1, -1]);
        assert_eq!(result.covers.ids, [2, 5, 4, 3], "una+ble, able+a, and 'able' cannot be spelled");
        assert_eq!(result.covers.offsets, [0, 0, 2, 4, 4]);
    }

    #[test]
    fn role_pairs_outside_the_vocabularies_are_ignored() {
        let one = wordpiece(&["[UNK]", "a"]);
        let result = align(&one, one.vocabulary(), Overlap::Exact, &[(9, 0), (0, 9), (1, 0)], false);
        assert_eq!((result.match_kind, result.source_id), (vec![1, 4], vec![0, 0]));
    }
}
