//! Tokens by their canonical bytes: one table for matching, one made ready for segmenting.
use std::hash::Hasher;

use rayon::prelude::*;
use rustc_hash::FxHasher;

use crate::token::{Vocabulary, ADDED, BYTE_PIECE};

/// No id.
pub(crate) const NONE: u32 = u32::MAX;

/// Ids of a vocabulary by canonical bytes; ids of equal bytes are chained in ascending order.
pub struct Index<'a> {
    pub(crate) vocabulary: &'a Vocabulary,
    /// Open addressing by hash: seven bits of it (0 is an empty slot), so that most strangers are told apart without
    /// leaving this small table, and the first id of each slot's chain. A general hash map of slices took twice the time.
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

impl<'a> Index<'a> {
    /// Indexes all tokens that stand for text.
    pub fn new(vocabulary: &'a Vocabulary) -> Self {
        let size = vocabulary.size();
        let hashes: Vec<u64> = (0..size).into_par_iter().map(|id| hash(vocabulary.canonical.get(id))).collect();
        let slots = (size * 2).next_power_of_two().max(2);
        let mut index = Index { vocabulary, tags: vec![0; slots], first: vec![NONE; slots], next: vec![NONE; size] };
        for id in (0..size).rev().filter(|&id| vocabulary.is_text(id)) {
            let slot = index.slot(hashes[id], vocabulary.canonical.get(id));
            index.next[id] = index.first[slot];
            index.first[slot] = id as u32;
            index.tags[slot] = tag(hashes[id]);
        }
        index
    }

    /// The slot of these bytes: the one that has them, else the empty one where they would go.
    fn slot(&self, hash: u64, bytes: &[u8]) -> usize {
        let mask = self.tags.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let found = self.tags[slot];
            let same = |id: u32| self.vocabulary.canonical.get(id as usize) == bytes;
            if found == 0 || (found == tag(hash) && same(self.first[slot])) {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    /// Ids with these bytes, ascending.
    pub fn ids(&self, bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
        let mut at = self.first[self.slot(hash(bytes), bytes)];
        std::iter::from_fn(move || {
            let id = at;
            (id != NONE).then(|| {
                at = self.next[id as usize];
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
    index: &'a Index<'a>,
    tables: Tables,
}

/// What [`Pieces`] looks in first; made from the vocabulary alone, so that it can be while the index is.
pub struct Tables {
    one: Box<[u32; 256]>,
    two: Vec<u32>,
    few: Few,
    /// Bit `n - 4` of entry `key(text)`: a piece of `n` bytes (bit 15: 19 or more) may begin with the first four bytes of
    /// `text`. Small enough to stay in the cache, where four times the bits would not.
    lengths: Vec<u16>,
    /// Bytes of the longest piece.
    longest: usize,
}

const KEYS: usize = 1 << 16;

impl Tables {
    /// Prepares the lookups.
    pub fn new(vocabulary: &Vocabulary) -> Self {
        let is_piece = |id: &usize| vocabulary.is_text(*id) && vocabulary.flags[*id] & (BYTE_PIECE | ADDED) == 0;
        let mut pieces = Tables {
            one: Box::new([NONE; 256]),
            two: vec![NONE; 1 << 16],
            few: Few::with_capacity(
                (0..vocabulary.size()).filter(|id| is_piece(id) && Few::takes(vocabulary.canonical.get(*id))).count(),
            ),
            lengths: vec![0; KEYS],
            longest: 0,
        };
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
    /// The pieces of the index's vocabulary, from which the tables are, too.
    pub fn new(index: &'a Index<'a>, tables: Tables) -> Self {
        Pieces { index, tables }
    }

    /// The piece of exactly these bytes.
    pub fn get(&self, bytes: &[u8]) -> Option<u32> {
        let id = match *bytes {
            [] => NONE,
            [a] => self.tables.one[a as usize],
            [a, b] => self.tables.two[usize::from(u16::from_le_bytes([a, b]))],
            [_, _, _] => self.tables.few.get(bytes),
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
    let four = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    (four.wrapping_mul(0x9e37_79b1) >> 16) as usize
}

/// Pieces of 3 to 7 bytes, most of a vocabulary, by their bytes in one number: one look at memory where the general table
/// takes five. It shortened covers by a third.
struct Few {
    keys: Vec<u64>,
    ids: Vec<u32>,
}

impl Few {
    fn takes(bytes: &[u8]) -> bool {
        (3..=7).contains(&bytes.len())
    }

    fn with_capacity(pieces: usize) -> Self {
        let slots = (pieces + pieces / 2).next_power_of_two().max(2);
        Few { keys: vec![0; slots], ids: vec![NONE; slots] }
    }

    /// The bytes and, so that no two strings share a number, their count; never 0.
    fn pack(bytes: &[u8]) -> u64 {
        let low = bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
        low | (bytes.len() as u64) << 56
    }

    /// The slot of a packed key: the one that has it, else the empty one where it would go.
    fn slot(&self, packed: u64) -> usize {
        let mask = self.keys.len() - 1;
        let mut slot = (packed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & mask;
        while self.keys[slot] != 0 && self.keys[slot] != packed {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn insert(&mut self, bytes: &[u8], id: u32) {
        let packed = Few::pack(bytes);
        let slot = self.slot(packed);
        self.keys[slot] = packed;
        self.ids[slot] = id;
    }

    /// The id of these bytes, or [`NONE`].
    fn get(&self, bytes: &[u8]) -> u32 {
        self.ids[self.slot(Few::pack(bytes))]
    }
}
