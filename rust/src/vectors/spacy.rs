//! What a spaCy vectors folder needs: floret's row hashes, and the table from string keys to rows.
use rayon::prelude::*;

use super::{hashing, Found};
use crate::error::{Error, Result};

/// Settings of a floret table, from its `vectors.cfg`.
#[derive(Debug, Clone)]
pub struct Floret {
    /// Shortest n-gram in characters.
    pub shortest: usize,
    /// Longest n-gram in characters.
    pub longest: usize,
    /// Rows per n-gram, 1 to 4.
    pub hashes: usize,
    /// Seed of the hash.
    pub seed: u32,
    /// Rows of the table.
    pub rows: u64,
    /// Mark before a word.
    pub begin: String,
    /// Mark after a word.
    pub end: String,
}

/// Vectors of words from a floret table of `floret.rows` rows: the mean of the rows of the marked word and its n-grams,
/// summed in that order (spaCy's own bits). `None` and the empty word have none.
pub fn floret_vectors(words: &[Option<String>], floret: &Floret, table: &[f32]) -> Found {
    let dimension = table.len() / (floret.rows.max(1) as usize);
    let mut values = vec![0f32; words.len() * dimension];
    let mut known = vec![false; words.len()];
    let each = values.par_chunks_mut(dimension.max(1)).zip(known.par_iter_mut()).zip(words);
    each.for_each(|((row, known), word)| {
        let Some(word) = word.as_deref().filter(|word| !word.is_empty()) else { return };
        let rows = rows_of(word, floret);
        for place in &rows {
            row.iter_mut().zip(&table[place * dimension..]).for_each(|(sum, value)| *sum += value);
        }
        row.iter_mut().for_each(|sum| *sum /= rows.len() as f32);
        *known = true;
    });
    Found { values, known, dimension }
}

fn rows_of(word: &str, floret: &Floret) -> Vec<usize> {
    let marked = [floret.begin.as_str(), word, floret.end.as_str()].concat();
    let starts: Vec<usize> = marked.char_indices().map(|(at, _)| at).chain([marked.len()]).collect();
    let characters = starts.len() - 1;
    let mut rows = Vec::new();
    let mut push = |gram: &str| {
        let [low, high] = hashing::murmur3_x64_128(gram.as_bytes(), floret.seed);
        let four = [low & 0xffff_ffff, low >> 32, high & 0xffff_ffff, high >> 32];
        rows.extend(four.iter().take(floret.hashes).map(|hash| (hash % floret.rows.max(1)) as usize));
    };
    push(&marked);
    for size in floret.shortest..=floret.longest.min(characters) {
        for first in 0..=characters - size {
            push(&marked[starts[first]..starts[first + size]]);
        }
    }
    rows
}

/// Row of each word in a word table, -1 for none; `table` is the content of its `key2row` file.
pub fn table_rows(table: &[u8], words: &[Option<String>], name: &str) -> Result<Vec<i64>> {
    let entries = key_to_row(table).ok_or_else(|| {
        Error::input(name, "a broken table", "a MessagePack map of 64-bit keys to rows", "fetch the folder again")
    })?;
    let map: rustc_hash::FxHashMap<u64, i64> = entries.into_iter().collect();
    let key = |word: &String| hashing::murmur64a(word.as_bytes(), 1);
    Ok(words.iter().map(|word| word.as_ref().and_then(|word| map.get(&key(word)).copied()).unwrap_or(-1)).collect())
}

/// The one shape of MessagePack that the file has: a map from unsigned keys to integers.
fn key_to_row(table: &[u8]) -> Option<Vec<(u64, i64)>> {
    let mut at = 0;
    let count = match take(table, &mut at, 1)? {
        byte @ 0x80..=0x8f => byte & 0x0f,
        0xde => take(table, &mut at, 2)?,
        0xdf => take(table, &mut at, 4)?,
        _ => return None,
    };
    let mut entries = Vec::with_capacity(count.min(table.len() as u64) as usize);
    for _ in 0..count {
        let key = integer(table, &mut at)?;
        entries.push((key as u64, integer(table, &mut at)?));
    }
    Some(entries)
}

fn take(table: &[u8], at: &mut usize, count: usize) -> Option<u64> {
    let bytes = table.get(*at..*at + count)?;
    *at += count;
    Some(bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

/// A MessagePack integer; keys of 64 bits keep their bits.
fn integer(table: &[u8], at: &mut usize) -> Option<i64> {
    Some(match take(table, at, 1)? {
        small @ 0..=0x7f => small as i64,
        negative @ 0xe0..=0xff => negative as u8 as i8 as i64,
        0xcc => take(table, at, 1)? as i64,
        0xcd => take(table, at, 2)? as i64,
        0xce => take(table, at, 4)? as i64,
        0xcf => take(table, at, 8)? as i64,
        0xd0 => take(table, at, 1)? as u8 as i8 as i64,
        0xd1 => take(table, at, 2)? as u16 as i16 as i64,
        0xd2 => take(table, at, 4)? as u32 as i32 as i64,
        0xd3 => take(table, at, 8)? as i64,
        _ => return None,
    })
}
