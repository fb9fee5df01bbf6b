//! Look-up tables over a vocabulary: one finds tokens by their canonical bytes, the others serve segmentation.
use std::hash::Hasher;
use std::sync::OnceLock;

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHasher};

use crate::short_pieces::{read_u32, ShortPieces};
use crate::token::{Segmenter, Vocabulary, BYTE_PIECE, NONE};

/// A vocabulary with its look-up tables. A table is built when it is first needed and kept for the next alignment.
#[derive(Debug)]
pub struct IndexedVocabulary {
    vocabulary: Vocabulary,
    by_bytes: OnceLock<ByteIndex>,
    tables: OnceLock<PieceTables>,
}

impl IndexedVocabulary {
    /// Wraps a vocabulary; builds nothing yet.
    pub fn new(vocabulary: Vocabulary) -> Self {
        IndexedVocabulary { vocabulary, by_bytes: OnceLock::new(), tables: OnceLock::new() }
    }

    /// The vocabulary itself.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Builds the tables that an alignment needs of its source, in parallel; the tables for covers only if `with_covers` is set.
    ///
    /// A caller may do this while the target is still being read. Tables that exist are kept.
    pub fn prepare(&self, with_covers: bool) {
        rayon::join(|| self.index(), || with_covers.then(|| self.tables()));
    }

    /// The text tokens by their canonical bytes.
    pub fn index(&self) -> Index<'_> {
        let by_bytes = get_or_build(&self.by_bytes, || ByteIndex::new(&self.vocabulary));
        Index { vocabulary: &self.vocabulary, by_bytes }
    }

    /// The pieces of the model.
    pub fn pieces(&self) -> Pieces<'_> {
        Pieces { index: self.index(), tables: self.tables() }
    }

    fn tables(&self) -> &PieceTables {
        get_or_build(&self.tables, || PieceTables::new(&self.vocabulary))
    }
}

/// The value of the cell, built by `build` if there is none.
///
/// Two threads may both build it; one of the two values is dropped. `OnceLock::get_or_init(build)` could deadlock: the thread
/// that builds waits inside rayon, may run another job of the pool meanwhile, and that job would wait for the same cell.
fn get_or_build<T>(cell: &OnceLock<T>, build: impl FnOnce() -> T) -> &T {
    match cell.get() {
        Some(value) => value,
        None => {
            let value = build();
            cell.get_or_init(|| value)
        }
    }
}

/// The text tokens of a vocabulary by their canonical bytes.
#[derive(Clone, Copy)]
pub struct Index<'a> {
    pub(crate) vocabulary: &'a Vocabulary,
    by_bytes: &'a ByteIndex,
}

/// A hash table from canonical bytes to the chain of ids that have them, in ascending order.
///
/// Open addressing with linear probing. The tag of a slot is 7 bits of the hash with the highest bit set, or 0 for an empty
/// slot, so that most other keys are ruled out by this small array. With `hashbrown::HashTable` in place of this table, matching
/// Qwen's tokens with e5's and covering the rest took 8 % more instructions.
#[derive(Debug)]
struct ByteIndex {
    /// Tag of each slot.
    tags: Vec<u8>,
    /// First id of the chain of each slot.
    first: Vec<u32>,
    /// For each id of the vocabulary, the next id in its chain, or [`NONE`].
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

impl ByteIndex {
    fn new(vocabulary: &Vocabulary) -> Self {
        let size = vocabulary.size();
        let hashes: Vec<u64> = (0..size).into_par_iter().map(|id| hash(vocabulary.canonical.get(id))).collect();
        let slots = (size * 2).next_power_of_two().max(2);
        let mut index = ByteIndex { tags: vec![0; slots], first: vec![NONE; slots], next: vec![NONE; size] };
        // Descending, because each id is put in front of its chain.
        for id in (0..size).rev().filter(|&id| vocabulary.is_text(id)) {
            let slot = index.find_slot(vocabulary, hashes[id], vocabulary.canonical.get(id));
            index.next[id] = index.first[slot];
            index.first[slot] = id as u32;
            index.tags[slot] = tag(hashes[id]);
        }
        index
    }

    /// The slot that has these bytes, else the empty slot where they would be inserted.
    fn find_slot(&self, vocabulary: &Vocabulary, hash: u64, bytes: &[u8]) -> usize {
        let mask = self.tags.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let slot_tag = self.tags[slot];
            let has_bytes = |id: u32| vocabulary.canonical.get(id as usize) == bytes;
            if slot_tag == 0 || (slot_tag == tag(hash) && has_bytes(self.first[slot])) {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    /// The first id of the chain of these bytes, or [`NONE`].
    fn first_id(&self, vocabulary: &Vocabulary, bytes: &[u8]) -> u32 {
        self.first[self.find_slot(vocabulary, hash(bytes), bytes)]
    }
}

impl Index<'_> {
    /// Ids of the text tokens with these canonical bytes, ascending.
    pub fn ids(&self, bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
        let mut next_id = self.by_bytes.first_id(self.vocabulary, bytes);
        std::iter::from_fn(move || {
            let id = next_id;
            (id != NONE).then(|| {
                next_id = self.by_bytes.next[id as usize];
                id
            })
        })
    }

    /// The smallest id with these canonical bytes and none of the flags in `excluded`.
    pub fn smallest_without(&self, excluded: u8, bytes: &[u8]) -> Option<u32> {
        self.ids(bytes).find(|&id| self.vocabulary.flags[id as usize] & excluded == 0)
    }
}

/// The pieces of the model, with tables for the many look-ups of a segmentation.
///
/// Byte-fallback pieces and added tokens are not among them: the model does not build text from these.
pub struct Pieces<'a> {
    index: Index<'a>,
    pub(crate) tables: &'a PieceTables,
}

/// The tables of [`Pieces`]. They depend on the vocabulary alone, so they can be built at the same time as the [`Index`].
#[derive(Debug)]
pub(crate) struct PieceTables {
    /// Id of the piece of each byte.
    one_byte: Box<[u32; 256]>,
    /// Id of the piece of each pair of bytes, indexed by the pair as a little-endian number.
    two_bytes: Vec<u32>,
    /// Ids of the pieces of 3 to 7 bytes.
    short: ShortPieces,
    /// Which lengths the pieces have that begin with the four bytes of a [`prefix_slot`], as bits of [`length_bit`]. The table
    /// fits into the cache; one of four times the size does not.
    lengths: Vec<u16>,
    /// Length of the longest piece in bytes.
    longest: usize,
    /// Id of the byte-fallback piece of each byte.
    pub(crate) byte_pieces: Box<[u32; 256]>,
    /// Byte-pair encoding: (left id, right id) -> (rank, id of the result).
    pub(crate) merges: FxHashMap<(u32, u32), (u32, u32)>,
    /// Unigram: log-probability of a character that has no piece.
    pub(crate) unknown_score: f64,
}

/// Number of entries of [`PieceTables::lengths`].
const PREFIX_SLOTS: usize = 1 << 16;

/// SentencePiece's penalty: the log-probability of a character without a piece is this much below the smallest of all pieces.
const UNKNOWN_PENALTY: f64 = 10.0;

impl PieceTables {
    fn new(vocabulary: &Vocabulary) -> Self {
        // Descending, so that the smallest id of equal pieces stays.
        let piece_ids = || (0..vocabulary.size()).rev().filter(|&id| vocabulary.is_model_piece(id));
        let short_count = piece_ids().filter(|&id| ShortPieces::accepts(vocabulary.canonical.get(id))).count();
        let mut tables = PieceTables {
            one_byte: Box::new([NONE; 256]),
            two_bytes: vec![NONE; 1 << 16],
            short: ShortPieces::with_capacity(short_count),
            lengths: vec![0; PREFIX_SLOTS],
            longest: 0,
            byte_pieces: Box::new([NONE; 256]),
            merges: FxHashMap::default(),
            unknown_score: 0.0,
        };
        match &vocabulary.segmenter {
            Segmenter::Bpe(merges) => {
                tables.merges.reserve(merges.len());
                for (rank, &[left, right, result]) in merges.iter().enumerate() {
                    tables.merges.entry((left, right)).or_insert((rank as u32, result));
                }
            }
            Segmenter::Unigram(scores) => {
                tables.unknown_score = scores.iter().copied().fold(f64::INFINITY, f64::min) - UNKNOWN_PENALTY;
            }
            Segmenter::Ranks | Segmenter::LongestMatch => {}
        }
        for (id, flag) in vocabulary.flags.iter().enumerate().rev() {
            if flag & BYTE_PIECE != 0 {
                if let [byte] = vocabulary.canonical.get(id) {
                    tables.byte_pieces[*byte as usize] = id as u32;
                }
            }
        }
        for id in piece_ids() {
            tables.insert(vocabulary.canonical.get(id), id as u32);
        }
        tables
    }

    fn insert(&mut self, bytes: &[u8], id: u32) {
        self.longest = self.longest.max(bytes.len());
        match *bytes {
            [] => {}
            [a] => self.one_byte[a as usize] = id,
            [a, b] => self.two_bytes[usize::from(u16::from_le_bytes([a, b]))] = id,
            _ if ShortPieces::accepts(bytes) => self.short.insert(bytes, id),
            _ => {}
        }
        if bytes.len() > 3 {
            self.lengths[prefix_slot(bytes)] |= length_bit(bytes.len());
        }
    }
}

impl Pieces<'_> {
    /// The smallest id of the pieces of exactly these bytes.
    #[inline]
    pub fn get(&self, bytes: &[u8]) -> Option<u32> {
        let id = match *bytes {
            [] => NONE,
            [a] => self.tables.one_byte[a as usize],
            [a, b] => self.tables.two_bytes[usize::from(u16::from_le_bytes([a, b]))],
            [a, b, c] => self.tables.short.get_three([a, b, c]),
            _ if self.tables.lengths[prefix_slot(bytes)] & length_bit(bytes.len()) == 0 => NONE,
            _ => return self.get_long(bytes),
        };
        (id != NONE).then_some(id)
    }

    /// The same for at least four bytes, without a look at [`PieceTables::lengths`].
    #[inline]
    fn get_long(&self, bytes: &[u8]) -> Option<u32> {
        if ShortPieces::accepts(bytes) {
            return Some(self.tables.short.get(bytes)).filter(|&id| id != NONE);
        }
        self.index.ids(bytes).find(|&id| self.index.vocabulary.is_model_piece(id as usize))
    }

    /// `id`, a piece of these bytes, if it is allowed, else the smallest allowed id of the pieces of the same bytes.
    #[inline]
    pub fn allowed_piece(&self, id: u32, bytes: &[u8], allowed: &impl Fn(u32) -> bool) -> Option<u32> {
        if allowed(id) {
            return Some(id);
        }
        self.index.ids(bytes).find(|&id| self.index.vocabulary.is_model_piece(id as usize) && allowed(id))
    }

    /// The smallest allowed id of the byte-fallback pieces of this byte.
    pub fn allowed_byte_piece(&self, byte: u8, allowed: &impl Fn(u32) -> bool) -> Option<u32> {
        let flags = &self.index.vocabulary.flags;
        self.index.ids(&[byte]).find(|&id| flags[id as usize] & BYTE_PIECE != 0 && allowed(id))
    }

    /// Calls `visit(length in bytes, id)` for every piece that `text` begins with, the shortest first.
    #[inline]
    pub fn for_each_prefix(&self, text: &[u8], mut visit: impl FnMut(usize, u32)) {
        for length in 1..=text.len().min(3) {
            if let Some(id) = self.get(&text[..length]) {
                visit(length, id);
            }
        }
        if text.len() < 4 {
            return;
        }
        let mut lengths = self.tables.lengths[prefix_slot(text)];
        while lengths != 0 {
            let shortest = lengths.trailing_zeros() as usize + 4;
            lengths &= lengths - 1;
            let longest = if shortest == LONG { self.tables.longest } else { shortest };
            for length in shortest..=longest.min(text.len()) {
                if let Some(id) = self.get_long(&text[..length]) {
                    visit(length, id);
                }
            }
        }
    }
}

/// All lengths from this one on, in bytes, share one bit.
const LONG: usize = 19;

/// The bit of a length in bytes, at least four.
#[inline]
fn length_bit(length: usize) -> u16 {
    1 << (length.min(LONG) - 4)
}

/// Index of the first four bytes in [`PieceTables::lengths`]; different prefixes can share an index.
#[inline]
fn prefix_slot(bytes: &[u8]) -> usize {
    (read_u32(bytes, 0).wrapping_mul(0x9e37_79b1) >> 16) as usize
}
