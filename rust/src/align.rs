//! Vocabulary alignment: a verdict for every target token.
use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::cover::{Coverer, Scratch};
use crate::index::{Index, Tables};
use crate::token::{Vocabulary, BYTE_PIECE, SPECIAL};

/// Verdict on a target token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MatchKind {
    /// No source token.
    None = 0,
    /// A source token of the same bytes and word start.
    Exact = 1,
    /// A source token of the same bytes but for the word start.
    WordStart = 2,
    /// A source token of the same bytes but for case (and perhaps the word start).
    Case = 3,
    /// A special token of the same role or spelling.
    Role = 4,
    /// A byte-fallback piece and a token of that one byte.
    Byte = 5,
}

/// The loosest match that makes a token shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Overlap {
    /// Same bytes, same word start.
    Exact,
    /// The word start may differ.
    WordStart,
    /// Case may differ too.
    Case,
}

/// The source id of the same bytes as target `token`: same spelling first, then same class, then smallest id.
fn same_bytes(index: &Index<'_>, target: &Vocabulary, token: usize, bytes: &[u8]) -> Option<(u32, MatchKind)> {
    let flags = target.flags[token];
    let spelling = target.spelling.get(token);
    let source = index.vocabulary;
    let rank = |id: u32| {
        let other = source.flags[id as usize];
        let same_spelling = source.kind == target.kind && source.spelling.get(id as usize) == spelling;
        (!(same_spelling && other & BYTE_PIECE == flags & BYTE_PIECE), (other ^ flags) & BYTE_PIECE != 0, id)
    };
    let id = index.ids(bytes).min_by_key(|&id| rank(id))?;
    if bytes.is_empty() && rank(id).0 {
        return None;
    }
    let byte = (flags | source.flags[id as usize]) & BYTE_PIECE != 0;
    Some((id, if byte { MatchKind::Byte } else { MatchKind::Exact }))
}

/// The result of [`align`], flat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alignment {
    /// [`MatchKind`] of each target id.
    pub kind: Vec<u8>,
    /// Source id of each target id, -1 for none.
    pub source_id: Vec<i32>,
    /// Where each target id's cover starts in `cover_ids`.
    pub cover_offsets: Vec<i64>,
    /// Source pieces that spell each unmatched target token.
    pub cover_ids: Vec<i32>,
}

/// Makes the lookups that [`align`] needs of its `source`, unless they are there: they can be while the target is still read.
pub fn prepare(source: &Vocabulary, covers: bool) {
    rayon::join(|| Index::new(source), || covers.then(|| Tables::of(source)));
}

/// Aligns `target` to `source`.
///
/// `roles` are pairs (target id, source id) that match whatever their text; ids outside the vocabularies are ignored.
/// The result does not depend on the number of threads.
pub fn align(
    source: &Vocabulary,
    target: &Vocabulary,
    overlap: Overlap,
    roles: &[(u32, u32)],
    covers: bool,
) -> Alignment {
    prepare(source, covers);
    let index = Index::new(source);
    let folded = (overlap == Overlap::Case).then(|| fold_index(source));
    let specials: FxHashMap<&[u8], u32> = (0..source.size())
        .rev()
        .filter(|&id| source.flags[id] & SPECIAL != 0)
        .map(|id| (source.spelling.get(id), id as u32))
        .collect();
    let mut given: FxHashMap<usize, u32> = FxHashMap::default();
    for &(token, id) in roles {
        if (token as usize) < target.size() && (id as usize) < source.size() {
            given.entry(token as usize).or_insert(id);
        }
    }
    let verdict = |token: usize| -> (MatchKind, i32) {
        let found = if let Some(&id) = given.get(&token) {
            Some((id, MatchKind::Role))
        } else if target.flags[token] & SPECIAL != 0 {
            specials.get(target.spelling.get(token)).map(|&id| (id, MatchKind::Role))
        } else if target.is_text(token) {
            text_match(&index, folded.as_ref(), target, token, overlap)
        } else {
            None
        };
        found.map_or((MatchKind::None, -1), |(id, kind)| (kind, id as i32))
    };
    let verdicts: Vec<(MatchKind, i32)> = (0..target.size()).into_par_iter().map(verdict).collect();
    let kind: Vec<u8> = verdicts.iter().map(|v| v.0 as u8).collect();
    let source_id: Vec<i32> = verdicts.iter().map(|v| v.1).collect();
    let (cover_offsets, cover_ids) = if covers {
        cover_all(&Coverer::new(index), target, &source_id)
    } else {
        (vec![0; target.size() + 1], Vec::new())
    };
    Alignment { kind, source_id, cover_offsets, cover_ids }
}

/// The strictest match that `overlap` allows.
fn text_match(
    index: &Index<'_>,
    folded: Option<&FxHashMap<Vec<u8>, u32>>,
    target: &Vocabulary,
    token: usize,
    overlap: Overlap,
) -> Option<(u32, MatchKind)> {
    let bytes = target.canonical.get(token);
    if let Some(found) = same_bytes(index, target, token, bytes) {
        return Some(found);
    }
    let loose = target.flags[token] & BYTE_PIECE == 0;
    if !loose || overlap == Overlap::Exact {
        return None;
    }
    let twin = toggled(bytes);
    if let Some(id) = twin.as_deref().and_then(|twin| index.without(BYTE_PIECE, twin)) {
        return Some((id, MatchKind::WordStart));
    }
    let folded = folded?;
    let lower = |bytes: &[u8]| folded.get(&fold(bytes)?).copied();
    lower(bytes).or_else(|| lower(twin.as_deref()?)).map(|id| (id, MatchKind::Case))
}

/// The same token with the other word start; `None` where that leaves no text.
fn toggled(bytes: &[u8]) -> Option<Vec<u8>> {
    match bytes {
        [] | [b' '] => None,
        [b' ', rest @ ..] => Some(rest.to_vec()),
        _ => Some([b" ", bytes].concat()),
    }
}

/// Lower case of valid UTF-8.
fn fold(bytes: &[u8]) -> Option<Vec<u8>> {
    std::str::from_utf8(bytes).ok().map(|text| text.to_lowercase().into_bytes())
}

/// The smallest plain id by lower-cased bytes.
fn fold_index(source: &Vocabulary) -> FxHashMap<Vec<u8>, u32> {
    let mut map = FxHashMap::default();
    for id in (0..source.size()).filter(|&id| source.is_text(id) && source.flags[id] & BYTE_PIECE == 0) {
        if let Some(lower) = fold(source.canonical.get(id)).filter(|lower| !lower.is_empty()) {
            map.entry(lower).or_insert(id as u32);
        }
    }
    map
}

/// Covers of all unmatched text tokens.
fn cover_all(coverer: &Coverer<'_>, target: &Vocabulary, source_id: &[i32]) -> (Vec<i64>, Vec<i32>) {
    in_blocks(target.size(), |token, scratch, ids| {
        if source_id[token] < 0 && target.is_text(token) {
            coverer.cover(target.canonical.get(token), scratch, ids);
        }
    })
}

/// Covers of target `tokens`, matched or not, each by the source vocabulary without the ids forbidden to it.
///
/// The ids forbidden to `tokens[i]` are `forbidden[offsets[i]..offsets[i + 1]]`, in any order. Covers come flat, with where
/// each starts. Special tokens and holes have none. The result does not depend on the number of threads.
pub fn covers_without(
    source: &Vocabulary,
    target: &Vocabulary,
    tokens: &[u32],
    offsets: &[usize],
    forbidden: &[u32],
) -> (Vec<i64>, Vec<i32>) {
    prepare(source, true);
    let coverer = Coverer::new(Index::new(source));
    in_blocks(tokens.len(), |place, scratch, ids| {
        let token = tokens[place] as usize;
        if target.is_text(token) {
            let mut without = forbidden[offsets[place]..offsets[place + 1]].to_vec();
            without.sort_unstable();
            coverer.cover_without(target.canonical.get(token), &without, scratch, ids);
        }
    })
}

/// What `each` appends for every place below `count`, flat, and where each starts; in blocks that are joined in order.
fn in_blocks(count: usize, each: impl Fn(usize, &mut Scratch, &mut Vec<u32>) + Sync) -> (Vec<i64>, Vec<i32>) {
    const BLOCK: usize = 2048;
    let blocks: Vec<(Vec<u32>, Vec<u32>)> = (0..count.div_ceil(BLOCK))
        .into_par_iter()
        .map(|block| {
            let range = block * BLOCK..((block + 1) * BLOCK).min(count);
            let mut ends = Vec::with_capacity(range.len());
            let mut ids = Vec::with_capacity(4 * range.len());
            let mut scratch = Scratch::default();
            for place in range {
                each(place, &mut scratch, &mut ids);
                ends.push(ids.len() as u32);
            }
            (ends, ids)
        })
        .collect();
    let mut offsets = Vec::with_capacity(count + 1);
    offsets.push(0i64);
    let mut all = Vec::with_capacity(blocks.iter().map(|b| b.1.len()).sum());
    for (ends, ids) in blocks {
        let base = all.len() as i64;
        offsets.extend(ends.iter().map(|&end| base + i64::from(end)));
        all.extend(ids.iter().map(|&id| id as i32));
    }
    (offsets, all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{tiktoken, tokenizer_json};
    use base64::Engine;
    use proptest::prelude::*;

    fn ranks(tokens: &[Vec<u8>]) -> Vocabulary {
        let engine = base64::engine::general_purpose::STANDARD;
        let lines: Vec<String> =
            tokens.iter().enumerate().map(|(i, t)| format!("{} {i}\n", engine.encode(t))).collect();
        tiktoken::read(lines.concat().as_bytes(), "ranks", &[]).unwrap()
    }

    fn wordpiece(tokens: &[&str]) -> Vocabulary {
        let vocab: serde_json::Map<_, _> = tokens.iter().zip(0..).map(|(t, i)| (t.to_string(), i.into())).collect();
        let file = serde_json::json!({"model": {"type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]"}});
        tokenizer_json::read(file.to_string().as_bytes(), "wordpiece", &[]).unwrap()
    }

    proptest! {
        #[test]
        fn exact_matches_are_the_equal_bytes(
            source in prop::collection::hash_set(prop::collection::vec(any::<u8>(), 1..4), 1..40),
            target in prop::collection::hash_set(prop::collection::vec(any::<u8>(), 1..4), 1..40),
        ) {
            let (source, target): (Vec<_>, Vec<_>) = (source.into_iter().collect(), target.into_iter().collect());
            let found = align(&ranks(&source), &ranks(&target), Overlap::Exact, &[], true);
            for (token, id) in found.source_id.iter().enumerate() {
                let expected = source.iter().position(|s| *s == target[token]).map_or(-1, |i| i as i32);
                prop_assert_eq!(*id, expected);
                let (from, to) = (found.cover_offsets[token] as usize, found.cover_offsets[token + 1] as usize);
                let spelled: Vec<u8> =
                    found.cover_ids[from..to].iter().flat_map(|&i| source[i as usize].clone()).collect();
                if *id >= 0 {
                    prop_assert!(spelled.is_empty());
                } else if from < to {
                    prop_assert_eq!(&spelled, &target[token]);
                } else {
                    prop_assert!(target[token].iter().any(|b| !source.contains(&vec![*b])));
                }
            }
        }

        /// The heap of pairs against the definition: again and again the best pair, the leftmost of equals.
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
            Coverer::new(Index::new(&vocabulary)).cover(&text, &mut Scratch::default(), &mut out);
            prop_assert_eq!(out, expected);
        }

        /// A cover without some ids is the cover by a vocabulary that lacks them; their tokens are respelled here, so that
        /// ranks stay.
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
            let found = covers_without(&ranks(&tokens), &target, &all, &counts, &forbidden.repeat(texts.len()));
            let none = vec![0; texts.len() + 1];
            let expected = covers_without(&ranks(&fewer), &target, &all, &none, &[]);
            prop_assert_eq!(&found, &expected);
            prop_assert!(found.1.iter().all(|&id| !forbidden.contains(&(id as u32))));
        }

        #[test]
        fn any_bytes_are_refused_or_read(data in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = tokenizer_json::read(&data, "x", &[]);
            let _ = tiktoken::read(&data, "x", &[]);
        }
    }

    #[test]
    fn the_longest_piece_first_and_continuations_only_inside() {
        let source = wordpiece(&["[UNK]", "un", "una", "##a", "##able", "##ble"]);
        let target = wordpiece(&["[UNK]", "unable", "##ablea", "able"]);
        let found = align(&source, &target, Overlap::Exact, &[], true);
        assert_eq!(found.source_id, [0, -1, -1, -1]);
        assert_eq!(found.cover_ids, [2, 5, 4, 3], "una+ble, able+a, and 'able' cannot be spelled");
        assert_eq!(found.cover_offsets, [0, 0, 2, 4, 4]);
    }

    #[test]
    fn role_pairs_outside_the_vocabularies_are_ignored() {
        let one = wordpiece(&["[UNK]", "a"]);
        let found = align(&one, &one, Overlap::Exact, &[(9, 0), (0, 9), (1, 0)], false);
        assert_eq!((found.kind, found.source_id), (vec![1, 4], vec![0, 0]));
    }
}
