//! Readers of static word vectors. They read only what the requested words need.

pub mod fasttext;
pub mod file;
pub mod hashing;
pub mod input;
pub mod spacy;
pub mod text;

use rustc_hash::FxHashMap;

/// Vectors of `n` requested words.
#[derive(Debug, Clone, PartialEq)]
pub struct WordVectors {
    /// Rows, `[n, dimension]` row by row; zeros for a word without a vector.
    pub values: Vec<f32>,
    /// Whether each word has a vector, `[n]`.
    pub known: Vec<bool>,
    /// Number of values of a row.
    pub dimension: usize,
}

/// The requested words as bytes, each with the indices at which `words` contains it.
pub(crate) fn indices_by_word<'a>(words: &'a [Option<String>]) -> FxHashMap<&'a [u8], Vec<usize>> {
    let mut indices: FxHashMap<&'a [u8], Vec<usize>> = FxHashMap::default();
    for (index, word) in words.iter().enumerate() {
        if let Some(word) = word {
            indices.entry(word.as_bytes()).or_default().push(index);
        }
    }
    indices
}
