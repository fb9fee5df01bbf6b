//! Subword overlap: a token's canonical bytes segmented by the source tokenizer's own algorithm.
//!
//! Law: the canonical bytes of a cover's pieces, joined, are the token's bytes; where that cannot be, the cover is empty.
//! A cover may be asked to do without some ids: it is then the cover by a vocabulary that lacks them.
use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::index::{Index, Pieces, NONE};
use crate::token::Vocabulary;

/// What a tokenizer's own segmentation needs beside its tokens.
#[derive(Debug, Default)]
pub enum Segmenter {
    /// Merges in order of priority, as pairs of native spellings' ids and the id they make.
    Bpe(Vec<[u32; 3]>),
    /// Merge any two neighbours whose joined bytes are a token; the smallest id (rank) first.
    Ranks,
    /// Log-probability of each id.
    Unigram(Vec<f64>),
    /// Greedy longest match from the left.
    #[default]
    Longest,
}

/// A segmenter made ready: lookups over one vocabulary.
pub struct Coverer<'a> {
    vocabulary: &'a Vocabulary,
    pieces: Pieces<'a>,
}

/// Buffers of one thread, used again for every token.
#[derive(Default)]
pub struct Scratch {
    symbols: Vec<Symbol>,
    /// Rank of the merge of each symbol with its right neighbour; [`NONE`] where there is none. Apart from the symbols so
    /// that the best is found by one pass over consecutive numbers.
    ranks: Vec<u32>,
    queue: BinaryHeap<Reverse<(u32, u32)>>,
    best: Vec<(f64, u32, u32)>,
    spans: Vec<(u32, u32, u32)>,
}

/// A symbol under merging: a stretch of the text, linked to its neighbours.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    start: u32,
    end: u32,
    previous: u32,
    next: u32,
    /// What the merge with the right neighbour makes.
    made: u32,
}

/// Up to this many symbols the best merge is looked for in turn, which takes half the time of a queue; beyond, the queue
/// keeps the cost of long tokens at O(n log n).
const FEW: usize = 96;

impl<'a> Coverer<'a> {
    /// Over the vocabulary of `index`.
    pub fn new(index: Index<'a>) -> Self {
        Coverer { vocabulary: index.vocabulary, pieces: Pieces::new(index) }
    }

    /// Appends the cover of `text` to `out`; nothing is appended where the pieces cannot spell it.
    pub fn cover(&self, text: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        self.cover_by(text, &|_| true, scratch, out);
    }

    /// The same with the ids that `forbidden` (ascending) does not name, as if the vocabulary had no others.
    ///
    /// Merges that name a forbidden id are gone with it; scores, the penalty of what has no piece among them, stay.
    pub fn cover_without(&self, text: &[u8], forbidden: &[u32], scratch: &mut Scratch, out: &mut Vec<u32>) {
        self.cover_by(text, &|id| forbidden.binary_search(&id).is_err(), scratch, out);
    }

    /// The cover by the ids that `may` allows; the test that allows all is compiled away.
    fn cover_by(&self, text: &[u8], may: &impl Fn(u32) -> bool, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let start = out.len();
        let whole = !text.is_empty()
            && match &self.vocabulary.segmenter {
                Segmenter::Bpe(_) | Segmenter::Ranks => self.merge(text, may, scratch, out),
                Segmenter::Unigram(scores) => self.viterbi(text, scores, may, scratch, out),
                Segmenter::Longest => self.longest_match(text, may, out),
            };
        if !whole {
            out.truncate(start);
        }
    }

    /// Width of the unit the model starts from: a byte where it is byte-level, else a character.
    fn width(&self, text: &[u8], at: usize) -> usize {
        if self.vocabulary.kind.by_bytes() {
            1
        } else {
            character_width(text, at)
        }
    }

    /// The token of one byte: a byte piece, else the model's own.
    fn byte(&self, byte: u8, may: &impl Fn(u32) -> bool) -> Option<u32> {
        let id = self.pieces.tables.bytes[byte as usize];
        if id != NONE {
            if may(id) {
                return Some(id);
            }
            if let Some(other) = self.pieces.byte_piece(byte, may) {
                return Some(other);
            }
        }
        self.piece(&[byte], may)
    }

    /// The piece of exactly these bytes.
    fn piece(&self, bytes: &[u8], may: &impl Fn(u32) -> bool) -> Option<u32> {
        self.pieces.get(bytes).and_then(|id| self.pieces.twin(id, bytes, may))
    }

    /// Byte-pair merging: the pair of best rank first, the leftmost on ties.
    fn merge(&self, text: &[u8], may: &impl Fn(u32) -> bool, scratch: &mut Scratch, out: &mut Vec<u32>) -> bool {
        let Scratch { symbols, ranks, queue, .. } = scratch;
        symbols.clear();
        let mut at = 0;
        while at < text.len() {
            let width = self.width(text, at);
            match self.piece(&text[at..at + width], may) {
                Some(id) => push_symbol(symbols, id, at, width),
                None => {
                    for (place, &byte) in text.iter().enumerate().skip(at).take(width) {
                        let Some(id) = self.byte(byte, may) else { return false };
                        push_symbol(symbols, id, place, 1);
                    }
                }
            }
            at += width;
        }
        let count = symbols.len();
        ranks.clear();
        ranks.resize(count, NONE);
        queue.clear();
        for left in 0..count {
            self.rank(text, symbols, ranks, left, may);
        }
        let queued = count > FEW;
        if queued {
            queue
                .extend((0..count).filter(|&left| ranks[left] != NONE).map(|left| Reverse((ranks[left], left as u32))));
        }
        loop {
            let left = if queued {
                // An entry is stale when its place has another rank by now.
                match std::iter::from_fn(|| queue.pop()).find(|Reverse((rank, left))| ranks[*left as usize] == *rank) {
                    Some(Reverse((_, left))) => left as usize,
                    None => break,
                }
            } else {
                let (mut left, mut least) = (0, NONE);
                for (place, &rank) in ranks.iter().enumerate() {
                    if rank < least {
                        (left, least) = (place, rank);
                    }
                }
                if least == NONE {
                    break;
                }
                left
            };
            let right = symbols[symbols[left].next as usize];
            ranks[symbols[left].next as usize] = NONE;
            symbols[left].id = symbols[left].made;
            symbols[left].end = right.end;
            symbols[left].next = right.next;
            if right.next as usize != count {
                symbols[right.next as usize].previous = left as u32;
            }
            let before = symbols[left].previous;
            for place in [left, before as usize] {
                if place < count {
                    self.rank(text, symbols, ranks, place, may);
                    if queued && ranks[place] != NONE {
                        queue.push(Reverse((ranks[place], place as u32)));
                    }
                }
            }
        }
        let mut at = 0;
        while at < count {
            out.push(symbols[at].id);
            at = symbols[at].next as usize;
        }
        true
    }

    /// Looks up the merge of symbol `left` with its right neighbour.
    fn rank(&self, text: &[u8], symbols: &mut [Symbol], ranks: &mut [u32], left: usize, may: &impl Fn(u32) -> bool) {
        let Some(right) = symbols.get(symbols[left].next as usize).copied() else {
            ranks[left] = NONE;
            return;
        };
        let found = if matches!(self.vocabulary.segmenter, Segmenter::Ranks) {
            self.piece(&text[symbols[left].start as usize..right.end as usize], may).map(|made| (made, made))
        } else {
            self.pieces.tables.merges.get(&(symbols[left].id, right.id)).copied().filter(|&(_, made)| may(made))
        };
        (ranks[left], symbols[left].made) = found.unwrap_or((NONE, NONE));
    }

    /// The most probable segmentation; of equals the one found first. O(n x pieces that begin at a place).
    fn viterbi(
        &self,
        text: &[u8],
        scores: &[f64],
        may: &impl Fn(u32) -> bool,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) -> bool {
        let Scratch { best, spans, .. } = scratch;
        let size = text.len();
        best.clear();
        best.resize(size + 1, (f64::NEG_INFINITY, 0, NONE));
        best[0].0 = 0.0;
        for start in 0..size {
            let reached = best[start].0;
            if reached == f64::NEG_INFINITY {
                continue;
            }
            let width = self.width(text, start);
            let mut has_single = false;
            self.pieces.beginning(&text[start..], |length, id| {
                let Some(id) = self.pieces.twin(id, &text[start..start + length], may) else { return };
                has_single |= length == width;
                let score = scores[id as usize] + reached;
                if score > best[start + length].0 {
                    best[start + length] = (score, start as u32, id);
                }
            });
            if !has_single && self.pieces.tables.unknown_score + reached > best[start + width].0 {
                best[start + width] = (self.pieces.tables.unknown_score + reached, start as u32, NONE);
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
                let Some(id) = self.byte(byte, may) else { return false };
                out.push(id);
            }
        }
        true
    }

    /// The longest token that begins what is left, again and again.
    fn longest_match(&self, text: &[u8], may: &impl Fn(u32) -> bool, out: &mut Vec<u32>) -> bool {
        let mut start = 0;
        while start < text.len() {
            let mut longest = None;
            self.pieces.beginning(&text[start..], |length, id| {
                if let Some(id) = self.pieces.twin(id, &text[start..start + length], may) {
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

fn push_symbol(symbols: &mut Vec<Symbol>, id: u32, start: usize, width: usize) {
    let place = symbols.len() as u32;
    symbols.push(Symbol {
        id,
        start: start as u32,
        end: (start + width) as u32,
        previous: place.wrapping_sub(1),
        next: place + 1,
        made: NONE,
    });
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
