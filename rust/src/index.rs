//! Tokens by their canonical bytes: one table for matching, one made ready for segmenting; each is made once a vocabulary.
use std::hash::Hasher;
use std::sync::OnceLock;

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHasher};

use crate::cover::Segmenter;
use crate::packed::{four, Few};
use crate::token::{Vocabulary, ADDED, BYTE_PIECE};

/// No id.
pub(crate) const NONE: u32 = u32::MAX;

/// What has been made of a vocabulary for lookups, kept with it for the next alignment.
#[derive(Debug, Default)]
pub struct Lookups {
    slots: OnceLock<Slots>,
    tables: OnceLock<Tables>,
}

/// What is there, or else what `make` gives. Two threads may both make it: were one to wait for the other, it might be inside
/// a job that the other one took up while it waited itself.
fn once<T>(cell: &OnceLock<T>, make: impl FnOnce() -> T) -> &T {
    match cell.get() {
        Some(there) => there,
        None => {
            let made = make();
            cell.get_or_init(|| made)
        }
    }
}

/// Ids of a vocabulary by canonical bytes; ids of equal bytes are chained in ascending order.
#[derive(Clone, Copy)]
pub struct Index<'a> {
    pub(crate) vocabulary: &'a Vocabulary,
    slots: &'a Slots,
}

/// Open addressing by hash: seven bits of it (0 is an empty slot), so that most strangers are told apart without leaving this
/// small table, and the first id of each slot's chain. A general hash map of slices took twice the time.
#[derive(Debug)]
struct Slots {
    tags: Vec<u8>,
    first: Vec<u32>,
    next: Vec<u32>,
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(bytes);
    hasher.finish()
}

fn tag(hash: u64) -> u8 {
    (hash >> 57) as u8 | 0x80
}

impl Slots {
    fn new(vocabulary: &Vocabulary) -> Self {
        let size = vocabulary.size();
        let hashes: Vec<u64> = (0..size).into_par_iter().map(|id| hash(vocabulary.canonical.get(id))).collect();
        let count = (size * 2).next_power_of_two().max(2);
        let mut slots = Slots { tags: vec![0; count], first: vec![NONE; count], next: vec![NONE; size] };
        for id in (0..size).rev().filter(|&id| vocabulary.is_text(id)) {
            let slot = slots.slot(vocabulary, hashes[id], vocabulary.canonical.get(id));
            slots.next[id] = slots.first[slot];
            slots.first[slot] = id as u32;
            slots.tags[slot] = tag(hashes[id]);
        }
        slots
    }

    /// The slot of these bytes: the one that has them, else the empty one where they would go.
    fn slot(&self, vocabulary: &Vocabulary, hash: u64, bytes: &[u8]) -> usize {
        let mask = self.tags.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let found = self.tags[slot];
            let same = |id: u32| vocabulary.canonical.get(id as usize) == bytes;
            if found == 0 || (found == tag(hash) && same(self.first[slot])) {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }
}

impl<'a> Index<'a> {
    /// Indexes all tokens that stand for text.
    pub fn new(vocabulary: &'a Vocabulary) -> Self {
        Index { vocabulary, slots: once(&vocabulary.lookups.slots, || Slots::new(vocabulary)) }
    }

    /// Ids with these bytes, ascending.
    pub fn ids(&self, bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
        let slots = self.slots;
        let mut at = slots.first[slots.slot(self.vocabulary, hash(bytes), bytes)];
        std::iter::from_fn(move || {
            let id = at;
            (id != NONE).then(|| {
                at = slots.next[id as usize];
                id
            })
        })
    }

    /// The smallest id with these bytes and none of these flags.
    pub fn without(&self, flags: u8, bytes: &[u8]) -> Option<u32> {
        self.ids(bytes).find(|&id| self.vocabulary.flags[id as usize] & flags == 0)
    }
}

/// The model's own pieces, made ready for the many lookups of a segmentation.
///
/// Byte pieces and added tokens are not among them: the model does not build text from those.
pub struct Pieces<'a> {
    index: Index<'a>,
    pub(crate) tables: &'a Tables,
}

/// What [`Pieces`] looks in first; made from the vocabulary alone, so that it can be while the index is.
#[derive(Debug)]
pub struct Tables {
    one: Box<[u32; 256]>,
    two: Vec<u32>,
    few: Few,
    /// Bit `n - 4` of entry `key(text)`: a piece of `n` bytes (bit 15: 19 or more) may begin with the first four bytes of
    /// `text`. Small enough to stay in the cache, where four times the bits would not.
    lengths: Vec<u16>,
    /// Bytes of the longest piece.
    longest: usize,
    /// The byte piece of each byte.
    pub(crate) bytes: Box<[u32; 256]>,
    /// Of byte-pair merging: ids of two neighbours -> rank and what they make.
    pub(crate) merges: FxHashMap<(u32, u32), (u32, u32)>,
    /// Log-probability of a character that has no piece, of a Unigram.
    pub(crate) unknown_score: f64,
}

const KEYS: usize = 1 << 16;

impl Tables {
    /// Those of a vocabulary.
    pub fn of(vocabulary: &Vocabulary) -> &Self {
        once(&vocabulary.lookups.tables, || Tables::new(vocabulary))
    }

    fn new(vocabulary: &Vocabulary) -> Self {
        let is_piece = |id: &usize| vocabulary.is_text(*id) && vocabulary.flags[*id] & (BYTE_PIECE | ADDED) == 0;
        let mut pieces = Tables {
            one: Box::new([NONE; 256]),
            two: vec![NONE; 1 << 16],
            few: Few::with_capacity(
                (0..vocabulary.size()).filter(|id| is_piece(id) && Few::takes(vocabulary.canonical.get(*id))).count(),
            ),
            lengths: vec![0; KEYS],
            longest: 0,
            bytes: Box::new([NONE; 256]),
            merges: FxHashMap::default(),
            unknown_score: 0.0,
        };
        match &vocabulary.segmenter {
            Segmenter::Bpe(list) => {
                pieces.merges.reserve(list.len());
                for (rank, &[left, right, made]) in list.iter().enumerate() {
                    pieces.merges.entry((left, right)).or_insert((rank as u32, made));
                }
            }
            // SentencePiece's own penalty for what has no piece: ten below the least likely one.
            Segmenter::Unigram(scores) => {
                pieces.unknown_score = scores.iter().copied().fold(f64::INFINITY, f64::min) - 10.0;
            }
            _ => {}
        }
        for (id, flag) in vocabulary.flags.iter().enumerate().rev() {
            if flag & BYTE_PIECE != 0 {
                if let [byte] = vocabulary.canonical.get(id) {
                    pieces.bytes[*byte as usize] = id as u32;
                }
            }
        }
        // Descending, so that the smallest of equal pieces stays.
        for id in (0..vocabulary.size()).rev().filter(is_piece) {
            let bytes = vocabulary.canonical.get(id);
            pieces.longest = pieces.longest.max(bytes.len());
            match *bytes {
                [] => continue,
                [a] => pieces.one[a as usize] = id as u32,
                [a, b] => pieces.two[usize::from(u16::from_le_bytes([a, b]))] = id as u32,
                _ if Few::takes(bytes) => pieces.few.insert(bytes, id as u32),
                _ => {}
            }
            if bytes.len() > 3 {
                pieces.lengths[key(bytes)] |= bit(bytes.len());
            }
        }
        pieces
    }
}

impl<'a> Pieces<'a> {
    /// The pieces of the index's vocabulary.
    pub fn new(index: Index<'a>) -> Self {
        Pieces { index, tables: Tables::of(index.vocabulary) }
    }

    /// The piece of exactly these bytes.
    pub fn get(&self, bytes: &[u8]) -> Option<u32> {
        let id = match *bytes {
            [] => NONE,
            [a] => self.tables.one[a as usize],
            [a, b] => self.tables.two[usize::from(u16::from_le_bytes([a, b]))],
            [a, b, c] => self.tables.few.three([a, b, c]),
            _ if self.tables.lengths[key(bytes)] & bit(bytes.len()) == 0 => NONE,
            _ => return self.probe(bytes),
        };
        (id != NONE).then_some(id)
    }

    /// The piece of these bytes, at least four.
    fn probe(&self, bytes: &[u8]) -> Option<u32> {
        if Few::takes(bytes) {
            return Some(self.tables.few.get(bytes)).filter(|&id| id != NONE);
        }
        self.index.without(BYTE_PIECE | ADDED, bytes)
    }

    /// The piece `id` of these bytes if it may be used, else the smallest other piece of the same bytes that may.
    pub fn twin(&self, id: u32, bytes: &[u8], may: &impl Fn(u32) -> bool) -> Option<u32> {
        if may(id) {
            return Some(id);
        }
        let flags = &self.index.vocabulary.flags;
        self.index.ids(bytes).find(|&id| flags[id as usize] & (BYTE_PIECE | ADDED) == 0 && may(id))
    }

    /// The smallest byte piece of this byte that may be used.
    pub fn byte_piece(&self, byte: u8, may: &impl Fn(u32) -> bool) -> Option<u32> {
        let flags = &self.index.vocabulary.flags;
        self.index.ids(&[byte]).find(|&id| flags[id as usize] & BYTE_PIECE != 0 && may(id))
    }

    /// Calls `found(length, id)` for every piece that begins `text`, shortest first.
    pub fn beginning(&self, text: &[u8], mut found: impl FnMut(usize, u32)) {
        for length in 1..=text.len().min(3) {
            if let Some(id) = self.get(&text[..length]) {
                found(length, id);
            }
        }
        if text.len() < 4 {
            return;
        }
        let mut lengths = self.tables.lengths[key(text)];
        while lengths != 0 {
            let length = lengths.trailing_zeros() as usize + 4;
            lengths &= lengths - 1;
            let last = if length == MANY { self.tables.longest } else { length };
            for length in length..=last.min(text.len()) {
                if let Some(id) = self.probe(&text[..length]) {
                    found(length, id);
                }
            }
        }
    }
}

/// The first length that shares its bit with all longer ones.
const MANY: usize = 19;

/// The bit of a length, at least four.
fn bit(length: usize) -> u16 {
    1 << (length.min(MANY) - 4)
}

/// The place of the first four bytes of `bytes` in a table of [`KEYS`] entries.
fn key(bytes: &[u8]) -> usize {
    (four(bytes, 0).wrapping_mul(0x9e37_79b1) >> 16) as usize
}
