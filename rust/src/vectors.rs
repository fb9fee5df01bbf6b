//! Readers of static word vectors: only what the wanted words need is read.

pub mod fasttext;
pub mod hashing;
pub mod spacy;
pub mod text;

use rustc_hash::FxHashMap;

/// Wanted words by their bytes, each with the places that ask for it.
pub(crate) fn places<'a>(words: &'a [Option<String>]) -> FxHashMap<&'a [u8], Vec<u32>> {
    let mut wanted: FxHashMap<&'a [u8], Vec<u32>> = FxHashMap::default();
    for (place, word) in words.iter().enumerate() {
        if let Some(word) = word {
            wanted.entry(word.as_bytes()).or_default().push(place as u32);
        }
    }
    wanted
}

/// Vectors of words: row `i` belongs to word `i`, zeros where it has none.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Rows, flat.
    pub values: Vec<f32>,
    /// Whether each word has a vector.
    pub known: Vec<bool>,
    /// Width of a row.
    pub dimension: usize,
}
