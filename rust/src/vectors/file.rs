//! Reads word vectors from a file of any format: the format is recognised by the content.
use std::path::Path;

use super::fasttext::{self, FastText};
use super::input::{check_size, open};
use super::text::{self, ListFormat};
use super::WordVectors;
use crate::error::Result;

/// Format of a file of word vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A fastText model.
    FastText,
    /// A word list in text or in word2vec's binary format.
    List(ListFormat),
}

impl Format {
    /// Name of the format.
    pub fn name(self) -> &'static str {
        match self {
            Format::FastText => "fasttext",
            Format::List(ListFormat::Binary) => "word2vec",
            Format::List(ListFormat::Text) => "text",
        }
    }
}

/// The format of a file of vectors, after checks that are quick for a large file.
///
/// # Errors
///
/// As [`read`]; the words of a packed file and the lines of a text file are not read.
pub fn check(path: &Path) -> Result<Format> {
    let input = open(path)?;
    let packed = input.packed;
    let (start, reader) = text::peek(input, path)?;
    let format = format_of(&start, path, packed);
    match format {
        Format::FastText if packed => fasttext::check_packed(reader, path)?,
        Format::FastText => FastText::open(path).map(|_| ())?,
        Format::List(_) => {}
    }
    Ok(format)
}

/// Reads the vectors of `words`; the format is recognised by the content.
///
/// # Errors
///
/// [`crate::error::Error::Io`] for a file that cannot be read; [`crate::error::Error::Input`] for a file that is truncated,
/// damaged or of another kind.
pub fn read(path: &Path, words: &[Option<String>]) -> Result<WordVectors> {
    let input = open(path)?;
    let packed = input.packed;
    let (start, reader) = text::peek(input, path)?;
    match format_of(&start, path, packed) {
        Format::FastText if packed => fasttext::read_packed(reader, path, words),
        Format::FastText => {
            let model = FastText::open(path)?;
            check_size(path, words.len(), model.dimension())?;
            Ok(model.vectors(words))
        }
        Format::List(format) => text::read_list(reader, format, path, words),
    }
}

fn format_of(start: &[u8], path: &Path, packed: bool) -> Format {
    if start.starts_with(&fasttext::MAGIC.to_le_bytes()) {
        return Format::FastText;
    }
    let list = text::format_of(start);
    // A plain file with the name of a model that is neither a model nor word2vec's: the reader of models says what is wrong.
    let named_model = path.extension().is_some_and(|extension| extension == "bin" || extension == "ftz");
    if list == ListFormat::Text && named_model && !packed && !text::starts_with_header(start) {
        return Format::FastText;
    }
    Format::List(list)
}
