//! Covers: the canonical bytes of a token, segmented by the algorithm of the source tokenizer.
//!
//! The canonical bytes of the pieces of a cover, joined, are the bytes of the token. The cover is empty where the pieces
//! cannot spell these bytes. A cover can exclude ids: it is then the cover by a vocabulary without these tokens.
//!
//! If the pieces of the source mark the ends of words, the space before a word belongs to its last piece: the cover of ` lower`
//! is `low` and ` er` (spelled `er</w>`), as the source segments the word `lower`.
use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::index::{IndexedVocabulary, Pieces};
use crate::token::{Segmenter, Vocabulary, NONE};

/// Computes covers by the segmentation algorithm of one vocabulary.
pub struct CoverBuilder<'a> {
    vocabulary: &'a Vocabulary,
    pieces: Pieces<'a>,
}

/// Buffers of one thread, reused for every token.
#[derive(Default)]
pub struct Scratch {
    symbols: Vec<Symbol>,
    /// Rank of the merge of each symbol with its right neighbour, or [`NONE`]. Kept apart from the symbols, so that the search
    /// for the smallest rank reads consecutive numbers.
    ranks: Vec<u32>,
    /// Merges as (rank, index of the left symbol), smallest first; only for long texts.
    queue: BinaryHeap<Reverse<(u32, u32)>>,
    /// Viterbi: for each end in bytes, the log-probability of the best segmentation up to there, and the start and the id of
    /// its last piece.
    best: Vec<(f64, u32, u32)>,
    /// Pieces of the best segmentation as (start, end, id), from right to left.
    spans: Vec<(u32, u32, u32)>,
}

/// A symbol of byte-pair encoding: a span of the text, in a doubly linked list. An index outside the list marks its ends.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    start: u32,
    end: u32,
    previous: u32,
    next: u32,
    /// Id that the merge with the right neighbour produces, or [`NONE`].
    merged_id: u32,
}

/// Up to this many symbols a linear search finds the best merge, in half the time of a priority queue. Longer texts use the
/// queue, so that their cost stays O(n log n).
const LINEAR_SEARCH_LIMIT: usize = 96;

impl<'a> CoverBuilder<'a> {
    /// Computes covers by the algorithm of `source`; builds the lookup tables of `source` unless they exist.
    pub fn new(source: &'a IndexedVocabulary) -> Self {
        CoverBuilder { vocabulary: source.vocabulary(), pieces: source.pieces() }
    }

    /// Appends the ids of the cover of `text` to `out`; appends nothing if the pieces cannot spell `text`.
    pub fn cover(&self, text: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        self.cover_allowed(text, &|_| true, scratch, out);
    }

    /// Appends the ids of the cover of `text` without the ids in `forbidden`, which must be ascending.
    ///
    /// The result is the cover by a vocabulary that lacks these tokens: merges that involve one of them are removed, all other
    /// ranks and scores stay, and so does the score of a character that has no piece.
    pub fn cover_without(&self, text: &[u8], forbidden: &[u32], scratch: &mut Scratch, out: &mut Vec<u32>) {
        self.cover_allowed(text, &|id| forbidden.binary_search(&id).is_err(), scratch, out);
    }

    /// The cover by the ids for which `allowed` holds. The compiler removes a test that is always true.
    fn cover_allowed(&self, text: &[u8], allowed: &impl Fn(u32) -> bool, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let start = out.len();
        let complete = !text.is_empty()
            && match &self.vocabulary.segmenter {
                Segmenter::Bpe(_) | Segmenter::Ranks => self.merge(text, allowed, scratch, out),
                Segmenter::Unigram(scores) => self.viterbi(text, scores, allowed, scratch, out),
                Segmenter::LongestMatch => self.longest_match(text, allowed, out),
            };
        if !complete {
            out.truncate(start);
        }
    }

    /// Width in bytes of the smallest unit of the model at `start`: a byte or a character.
    #[inline]
    fn unit_width(&self, text: &[u8], start: usize) -> usize {
        if self.vocabulary.kind.is_byte_based() {
            1
        } else {
            character_width(text, start)
        }
    }

    /// The token of one byte: a byte-fallback piece, else a piece of the model.
    fn byte_token(&self, byte: u8, allowed: &impl Fn(u32) -> bool) -> Option<u32> {
        let id = self.pieces.tables.byte_pieces[byte as usize];
        if id != NONE {
            if allowed(id) {
                return Some(id);
            }
            if let Some(other) = self.pieces.allowed_byte_piece(byte, allowed) {
                return Some(other);
            }
        }
        self.piece(&[byte], allowed)
    }

    /// The piece of exactly these bytes.
    fn piece(&self, bytes: &[u8], allowed: &impl Fn(u32) -> bool) -> Option<u32> {
        self.pieces.get(bytes).and_then(|id| self.pieces.allowed_piece(id, bytes, allowed))
    }

    /// Byte-pair encoding: repeatedly merges the pair of the smallest rank, the leftmost of equal ranks.
    ///
    /// Returns whether the pieces can spell the text.
    fn merge(&self, text: &[u8], allowed: &impl Fn(u32) -> bool, scratch: &mut Scratch, out: &mut Vec<u32>) -> bool {
        let Scratch { symbols, ranks, queue, .. } = scratch;
        let word = if self.vocabulary.marks_word_ends { text.strip_prefix(b" ") } else { None };
        let text = word.unwrap_or(text);
        if text.is_empty() || !self.split_into_symbols(text, word.is_some(), allowed, symbols) {
            return false;
        }
        let count = symbols.len();
        ranks.clear();
        ranks.resize(count, NONE);
        queue.clear();
        for left in 0..count {
            self.update_rank(text, symbols, ranks, left, allowed);
        }
        let use_queue = count > LINEAR_SEARCH_LIMIT;
        if use_queue {
            let mergeable = (0..count).filter(|&left| ranks[left] != NONE);
            queue.extend(mergeable.map(|left| Reverse((ranks[left], left as u32))));
        }
        while let Some(left) = if use_queue { pop_smallest(queue, ranks) } else { find_smallest(ranks) } {
            let right = symbols[symbols[left].next as usize];
            ranks[symbols[left].next as usize] = NONE;
            symbols[left].id = symbols[left].merged_id;
            symbols[left].end = right.end;
            symbols[left].next = right.next;
            if right.next as usize != count {
                symbols[right.next as usize].previous = left as u32;
            }
            let previous = symbols[left].previous as usize;
            for changed in [left, previous] {
                if changed < count {
                    self.update_rank(text, symbols, ranks, changed, allowed);
                    if use_queue && ranks[changed] != NONE {
                        queue.push(Reverse((ranks[changed], changed as u32)));
                    }
                }
            }
        }
        let mut index = 0;
        while index < count {
            out.push(symbols[index].id);
            index = symbols[index].next as usize;
        }
        true
    }

    /// Splits the text into the smallest units of the model, and a unit without a piece into bytes. If `ends_word` is set, the
    /// last unit takes the piece that ends a word.
    ///
    /// Returns whether every unit has a piece.
    fn split_into_symbols(
        &self,
        text: &[u8],
        ends_word: bool,
        allowed: &impl Fn(u32) -> bool,
        symbols: &mut Vec<Symbol>,
    ) -> bool {
        symbols.clear();
        let mut start = 0;
        while start < text.len() {
            let width = self.unit_width(text, start);
            let unit = &text[start..start + width];
            if ends_word && start + width == text.len() {
                let Some(id) = self.piece(&[b" ", unit].concat(), allowed) else { return false };
                push_symbol(symbols, id, start, width);
                return true;
            }
            match self.piece(unit, allowed) {
                Some(id) => push_symbol(symbols, id, start, width),
                None => {
                    for (position, &byte) in text.iter().enumerate().skip(start).take(width) {
                        let Some(id) = self.byte_token(byte, allowed) else { return false };
                        push_symbol(symbols, id, position, 1);
                    }
                }
            }
            start += width;
        }
        true
    }

    /// Looks up the merge of symbol `left` with its right neighbour.
    fn update_rank(
        &self,
        text: &[u8],
        symbols: &mut [Symbol],
        ranks: &mut [u32],
        left: usize,
        allowed: &impl Fn(u32) -> bool,
    ) {
        let Some(right) = symbols.get(symbols[left].next as usize).copied() else {
            ranks[left] = NONE;
            return;
        };
        let merge = if matches!(self.vocabulary.segmenter, Segmenter::Ranks) {
            self.piece(&text[symbols[left].start as usize..right.end as usize], allowed).map(|id| (id, id))
        } else {
            self.pieces.tables.merges.get(&(symbols[left].id, right.id)).copied().filter(|&(_, id)| allowed(id))
        };
        (ranks[left], symbols[left].merged_id) = merge.unwrap_or((NONE, NONE));
    }

    /// Unigram: the most probable segmentation; of equal ones the first, with pieces tried from left to right, short ones
    /// first. O(bytes x pieces that begin at a byte).
    ///
    /// Returns whether the pieces can spell the text.
    fn viterbi(
        &self,
        text: &[u8],
        scores: &[f64],
        allowed: &impl Fn(u32) -> bool,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) -> bool {
        let Scratch { best, spans, .. } = scratch;
        let size = text.len();
        best.clear();
        best.resize(size + 1, (f64::NEG_INFINITY, 0, NONE));
        best[0].0 = 0.0;
        for start in 0..size {
            let score_before = best[start].0;
            if score_before == f64::NEG_INFINITY {
                continue;
            }
            let width = self.unit_width(text, start);
            let mut has_single = false;
            self.pieces.for_each_prefix(&text[start..], |length, id| {
                let Some(id) = self.pieces.allowed_piece(id, &text[start..start + length], allowed) else { return };
                has_single |= length == width;
                let score = scores[id as usize] + score_before;
                if score > best[start + length].0 {
                    best[start + length] = (score, start as u32, id);
                }
            });
            let unknown_score = self.pieces.tables.unknown_score + score_before;
            if !has_single && unknown_score > best[start + width].0 {
                best[start + width] = (unknown_score, start as u32, NONE);
            }
        }
        spans.clear();
        let mut end = size;
        while end > 0 {
            let (_, start, id) = best[end];
            spans.push((start, end as u32, id));
            end = start as usize;
        }
        for &(start, end, id) in spans.iter().rev() {
            if id != NONE {
                out.push(id);
                continue;
            }
            for &byte in &text[start as usize..end as usize] {
                let Some(id) = self.byte_token(byte, allowed) else { return false };
                out.push(id);
            }
        }
        true
    }

    /// WordPiece: repeatedly takes the longest piece that begins the rest of the text.
    ///
    /// Returns whether the pieces can spell the text.
    fn longest_match(&self, text: &[u8], allowed: &impl Fn(u32) -> bool, out: &mut Vec<u32>) -> bool {
        let mut start = 0;
        while start < text.len() {
            let mut longest = None;
            self.pieces.for_each_prefix(&text[start..], |length, id| {
                if let Some(id) = self.pieces.allowed_piece(id, &text[start..start + length], allowed) {
                    longest = Some((length, id));
                }
            });
            let Some((length, id)) = longest else { return false };
            out.push(id);
            start += length;
        }
        true
    }
}

/// Index of the smallest rank, the first of equal ones; `None` if every rank is [`NONE`].
fn find_smallest(ranks: &[u32]) -> Option<usize> {
    let (mut smallest, mut smallest_rank) = (0, NONE);
    for (index, &rank) in ranks.iter().enumerate() {
        if rank < smallest_rank {
            (smallest, smallest_rank) = (index, rank);
        }
    }
    (smallest_rank != NONE).then_some(smallest)
}

/// The same by the queue. An entry is out of date if its symbol has another rank by now; such entries are dropped.
fn pop_smallest(queue: &mut BinaryHeap<Reverse<(u32, u32)>>, ranks: &[u32]) -> Option<usize> {
    while let Some(Reverse((rank, left))) = queue.pop() {
        if ranks[left as usize] == rank {
            return Some(left as usize);
        }
    }
    None
}

/// Appends a symbol of `width` bytes to the list.
fn push_symbol(symbols: &mut Vec<Symbol>, id: u32, start: usize, width: usize) {
    let index = symbols.len() as u32;
    symbols.push(Symbol {
        id,
        start: start as u32,
        end: (start + width) as u32,
        previous: index.wrapping_sub(1),
        next: index + 1,
        merged_id: NONE,
    });
}

/// Width in bytes of the UTF-8 character that begins at `start`; 1 where the bytes are not valid UTF-8.
#[inline]
fn character_width(text: &[u8], start: usize) -> usize {
    let width = match text[start] {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => 1,
    };
    match text.get(start..start + width) {
        Some(bytes) if std::str::from_utf8(bytes).is_ok() => width,
        _ => 1,
    }
}
