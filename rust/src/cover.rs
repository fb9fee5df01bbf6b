//! Subword overlap: a token's canonical bytes segmented by the source tokenizer's own algorithm.
//!
//! Law: the canonical bytes of a cover's pieces, joined, are the token's bytes; where that cannot be, the cover is empty.
use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use crate::align::Index;
use crate::token::{Vocabulary, BYTE_PIECE};

/// What a tokenizer's own segmentation needs beside its tokens.
#[derive(Debug, Default)]
pub enum Segmenter {
    /// Merges in order of priority, as pairs of native spellings' ids and the id they make.
    Bpe(Vec<[u32; 3]>),
    /// Merge any two neighbours whose joined bytes are a token; the smallest id (rank) first.
    Ranks,
    /// Log-probability of each id.
    Unigram(Vec<f32>),
    /// Greedy longest match from the left.
    #[default]
    Longest,
}

/// A segmenter made ready: lookups over one vocabulary.
pub struct Coverer<'a> {
    vocabulary: &'a Vocabulary,
    index: &'a Index<'a>,
    merges: FxHashMap<(u32, u32), (u32, u32)>,
    bytes: Box<[Option<u32>; 256]>,
    longest: usize,
    unknown_score: f32,
}

const NONE: u32 = u32::MAX;

impl<'a> Coverer<'a> {
    /// Prepares the lookups; `index` must be that of `vocabulary`.
    pub fn new(vocabulary: &'a Vocabulary, index: &'a Index<'a>) -> Self {
        let mut bytes = Box::new([None; 256]);
        for (id, flag) in vocabulary.flags.iter().enumerate() {
            if flag & BYTE_PIECE != 0 {
                if let [byte] = vocabulary.canonical.get(id) {
                    bytes[*byte as usize].get_or_insert(id as u32);
                }
            }
        }
        let merges = match &vocabulary.segmenter {
            Segmenter::Bpe(list) => {
                let mut map = FxHashMap::with_capacity_and_hasher(list.len(), Default::default());
                for (rank, &[left, right, made]) in list.iter().enumerate() {
                    map.entry((left, right)).or_insert((rank as u32, made));
                }
                map
            }
            _ => FxHashMap::default(),
        };
        let longest = (0..vocabulary.size())
            .filter(|&id| vocabulary.is_text(id))
            .map(|id| vocabulary.canonical.get(id).len())
            .max()
            .unwrap_or(0);
        let unknown_score = match &vocabulary.segmenter {
            // SentencePiece's own penalty for what has no piece: ten below the least likely one.
            Segmenter::Unigram(scores) => scores.iter().copied().fold(f32::INFINITY, f32::min) - 10.0,
            _ => 0.0,
        };
        Coverer { vocabulary, index, merges, bytes, longest, unknown_score }
    }

    /// Appends the cover of `text` to `out`; nothing is appended where the pieces cannot spell it.
    pub fn cover(&self, text: &[u8], out: &mut Vec<u32>) {
        let start = out.len();
        let whole = !text.is_empty()
            && match &self.vocabulary.segmenter {
                Segmenter::Bpe(_) | Segmenter::Ranks => self.merge(text, out),
                Segmenter::Unigram(scores) => self.viterbi(text, scores, out),
                Segmenter::Longest => self.longest_match(text, out),
            };
        if !whole {
            out.truncate(start);
        }
    }

    /// A token of exactly these bytes that is neither special nor a byte piece.
    fn piece(&self, bytes: &[u8]) -> Option<u32> {
        self.index.plain(bytes)
    }

    /// Pieces for a character: itself, else its byte pieces.
    fn push_character(&self, character: &[u8], out: &mut Vec<u32>) -> bool {
        if let Some(id) = self.piece(character) {
            out.push(id);
            return true;
        }
        let start = out.len();
        for &byte in character {
            let single = self.bytes[byte as usize].or_else(|| self.piece(&[byte]));
            match single {
                Some(id) => out.push(id),
                None => {
                    out.truncate(start);
                    return false;
                }
            }
        }
        true
    }

    /// Byte-pair merging: the pair of best rank first, the leftmost on ties. O(n log n) for n symbols.
    fn merge(&self, text: &[u8], out: &mut Vec<u32>) -> bool {
        let ranks = matches!(self.vocabulary.segmenter, Segmenter::Ranks);
        let by_bytes = ranks || self.vocabulary.kind == crate::token::Kind::ByteLevelBpe;
        let mut ids = Vec::with_capacity(text.len());
        let mut widths = Vec::with_capacity(text.len());
        let mut at = 0;
        while at < text.len() {
            let width = if by_bytes { 1 } else { character_width(text, at) };
            let before = ids.len();
            if !self.push_character(&text[at..at + width], &mut ids) {
                return false;
            }
            let pieces = ids.len() - before;
            widths.extend(std::iter::repeat_n(if pieces == 1 { width } else { 1 }, pieces));
            at += width;
        }
        let count = ids.len();
        let mut starts = Vec::with_capacity(count + 1);
        let mut position = 0;
        for width in &widths {
            starts.push(position);
            position += width;
        }
        let mut ends: Vec<usize> = (0..count).map(|i| starts[i] + widths[i]).collect();
        let mut next: Vec<usize> = (1..=count).collect();
        let mut previous: Vec<usize> = (0..count).map(|i| i.wrapping_sub(1)).collect();
        let pair = |ids: &[u32], ends: &[usize], left: usize, right: usize| -> Option<(u32, u32)> {
            if ranks {
                let made = self.piece(&text[starts[left]..ends[right]])?;
                Some((made, made))
            } else {
                self.merges.get(&(ids[left], ids[right])).copied()
            }
        };
        let mut queue = BinaryHeap::with_capacity(count);
        for left in 0..count.saturating_sub(1) {
            if let Some((rank, made)) = pair(&ids, &ends, left, left + 1) {
                queue.push(Reverse((rank, left, left + 1, made, ends[left + 1])));
            }
        }
        while let Some(Reverse((_, left, right, made, end))) = queue.pop() {
            // Stale: one side has been merged away or has grown since.
            if ids[left] == NONE || ids[right] == NONE || next[left] != right || ends[right] != end {
                continue;
            }
            if pair(&ids, &ends, left, right).map(|p| p.1) != Some(made) {
                continue;
            }
            ids[left] = made;
            ids[right] = NONE;
            ends[left] = end;
            next[left] = next[right];
            if next[left] < count {
                previous[next[left]] = left;
                let other = next[left];
                if let Some((rank, made)) = pair(&ids, &ends, left, other) {
                    queue.push(Reverse((rank, left, other, made, ends[other])));
                }
            }
            let other = previous[left];
            if other != usize::MAX {
                if let Some((rank, made)) = pair(&ids, &ends, other, left) {
                    queue.push(Reverse((rank, other, left, made, ends[left])));
                }
            }
        }
        out.extend(ids.into_iter().filter(|&id| id != NONE));
        true
    }

    /// The most probable segmentation; the longer last piece wins a tie. O(n x longest piece).
    fn viterbi(&self, text: &[u8], scores: &[f32], out: &mut Vec<u32>) -> bool {
        let size = text.len();
        let mut best = vec![(f32::NEG_INFINITY, 0usize, NONE); size + 1];
        best[0].0 = 0.0;
        let mut start = 0;
        while start < size {
            let reached = best[start].0;
            let width = character_width(text, start);
            let mut has_single = false;
            if reached > f32::NEG_INFINITY {
                let mut end = start;
                while end < size && end - start < self.longest {
                    end += character_width(text, end);
                    if let Some(id) = self.piece(&text[start..end]) {
                        has_single |= end == start + width;
                        let score = reached + scores.get(id as usize).copied().unwrap_or(self.unknown_score);
                        if score > best[end].0 {
                            best[end] = (score, start, id);
                        }
                    }
                }
                if !has_single && reached + self.unknown_score > best[start + width].0 {
                    best[start + width] = (reached + self.unknown_score, start, NONE);
                }
            }
            start += width;
        }
        let mut spans = Vec::new();
        let mut end = size;
        while end > 0 {
            let (_, start, id) = best[end];
            spans.push((start, end, id));
            end = start;
        }
        for &(start, end, id) in spans.iter().rev() {
            if id != NONE {
                out.push(id);
            } else if !self.push_character(&text[start..end], out) {
                return false;
            }
        }
        true
    }

    /// The longest token that begins what is left, again and again. O(n x longest piece).
    fn longest_match(&self, text: &[u8], out: &mut Vec<u32>) -> bool {
        let mut start = 0;
        while start < text.len() {
            let limit = text.len().min(start + self.longest);
            let found = (start + 1..=limit).rev().find_map(|end| Some((end, self.piece(&text[start..end])?)));
            match found {
                Some((end, id)) => {
                    out.push(id);
                    start = end;
                }
                None => return false,
            }
        }
        true
    }
}

/// Width in bytes of the UTF-8 character at `at`; 1 where the bytes are not UTF-8.
fn character_width(text: &[u8], at: usize) -> usize {
    let width = match text[at] {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => 1,
    };
    match text.get(at..at + width) {
        Some(bytes) if std::str::from_utf8(bytes).is_ok() => width,
        _ => 1,
    }
}
