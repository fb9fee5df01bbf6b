//! Word vectors from a spaCy folder: the rows of a floret table, and the rows of a word table by the keys of the words.
use rayon::prelude::*;
use rmp::decode::{read_int, read_map_len};
use rustc_hash::FxHashMap;

use super::{hashing, WordVectors};
use crate::error::{Error, Result};

/// Seed of the hash that gives a word its key in a spaCy word table.
const KEY_SEED: u64 = 1;

/// Settings of a floret table, from its `vectors.cfg`.
#[derive(Debug, Clone)]
pub struct Floret {
    /// Length of the shortest n-grams in characters.
    pub min_n: usize,
    /// Length of the longest n-grams in characters.
    pub max_n: usize,
    /// Number of rows for each n-gram, 1 to 4.
    pub hash_count: usize,
    /// Seed of the hash.
    pub hash_seed: u32,
    /// Number of rows of the table.
    pub rows: u64,
    /// Text in front of each word.
    pub begin_mark: String,
    /// Text behind each word.
    pub end_mark: String,
}

/// Vectors of words from a floret table, `[floret.rows, dimension]` row by row.
///
/// A vector is the mean of the rows of the marked word and of its n-grams, summed in that order in 32-bit floating point, as
/// spaCy does it. `None` and the empty word have no vector.
pub fn floret_vectors(words: &[Option<String>], floret: &Floret, table: &[f32]) -> WordVectors {
    let dimension = table.len() / (floret.rows.max(1) as usize);
    let mut values = vec![0f32; words.len() * dimension];
    let mut known = vec![false; words.len()];
    let outputs = values.par_chunks_mut(dimension.max(1)).zip(known.par_iter_mut());
    outputs.zip(words).for_each(|((vector, known), word)| {
        let Some(word) = word.as_deref().filter(|word| !word.is_empty()) else { return };
        let rows = floret_rows(word, floret);
        for row in &rows {
            let row = table.get(row * dimension..).unwrap_or_default();
            vector.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        vector.iter_mut().for_each(|sum| *sum /= rows.len() as f32);
        *known = true;
    });
    WordVectors { values, known, dimension }
}

/// Rows of the marked word and of its n-grams.
fn floret_rows(word: &str, floret: &Floret) -> Vec<usize> {
    let marked = [floret.begin_mark.as_str(), word, floret.end_mark.as_str()].concat();
    let starts: Vec<usize> = marked.char_indices().map(|(start, _)| start).chain([marked.len()]).collect();
    let characters = starts.len() - 1;
    let mut rows = Vec::new();
    let mut push = |ngram: &str| {
        let [low, high] = hashing::murmur3_x64_128(ngram.as_bytes(), floret.hash_seed);
        let hashes = [low & 0xffff_ffff, low >> 32, high & 0xffff_ffff, high >> 32];
        rows.extend(hashes.iter().take(floret.hash_count).map(|hash| (hash % floret.rows.max(1)) as usize));
    };
    push(&marked);
    for size in floret.min_n..=floret.max_n.min(characters) {
        let ends = starts.iter().skip(size);
        starts.iter().zip(ends).filter_map(|(&start, &end)| marked.get(start..end)).for_each(&mut push);
    }
    rows
}

/// Row of each word in a spaCy word table, or -1.
///
/// `key2row` is the content of the file of that name: a MessagePack map from 64-bit hashes of words to rows. Error messages call
/// the file `name`.
///
/// # Errors
///
/// [`Error::Input`] if the file is anything else.
pub fn table_rows(key2row: &[u8], words: &[Option<String>], name: &str) -> Result<Vec<i64>> {
    let rows = read_key2row(key2row).ok_or_else(|| {
        let expected = "a MessagePack map of 64-bit keys to rows";
        Error::input(name, "a broken table", expected, "download the folder again")
    })?;
    let find = |word: &String| rows.get(&hashing::murmur64a(word.as_bytes(), KEY_SEED)).copied();
    Ok(words.iter().map(|word| word.as_ref().and_then(find).unwrap_or(-1)).collect())
}

/// The content of a `key2row` file; `None` for anything else. Of equal keys the last counts.
fn read_key2row(mut bytes: &[u8]) -> Option<FxHashMap<u64, i64>> {
    let count = read_map_len(&mut bytes).ok()?;
    // A damaged file can announce any count; an entry has at least two bytes.
    let mut rows = FxHashMap::with_capacity_and_hasher((count as usize).min(bytes.len() / 2), Default::default());
    for _ in 0..count {
        rows.insert(read_int(&mut bytes).ok()?, read_int(&mut bytes).ok()?);
    }
    Some(rows)
}
