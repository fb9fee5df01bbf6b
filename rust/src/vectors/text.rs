//! Reads word vectors from text in one pass: word2vec text and `.vec` with a header, GloVe without one, plain or gzipped.
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::{indices_by_word, WordVectors};
use crate::error::{Error, Result};

const BUFFER_BYTES: usize = 1 << 20;
/// An error message shows at most this many bytes of a line.
const SHOWN_BYTES: usize = 40;

const DAMAGED: &str = "the file is damaged: download it again";

/// Reads the vectors of `words`. Of equal words in the file the first counts. Only these vectors are kept in memory.
///
/// # Errors
///
/// [`Error::Io`] for a file that cannot be read; [`Error::Input`] for a line that is not a word with finite numbers, a file
/// without vectors, and a file that does not have the number of vectors in its header.
pub fn read(path: &Path, words: &[Option<String>]) -> Result<WordVectors> {
    let file = File::open(path).map_err(|error| Error::io(path, &error))?;
    let mut plain = BufReader::with_capacity(BUFFER_BYTES, file);
    let start = plain.fill_buf().map_err(|error| Error::io(path, &error))?;
    let reader: Box<dyn Read> =
        if start.starts_with(&[0x1f, 0x8b]) { Box::new(MultiGzDecoder::new(plain)) } else { Box::new(plain) };
    read_lines(BufReader::with_capacity(BUFFER_BYTES, reader), path, words)
}

fn read_lines(mut reader: impl BufRead, path: &Path, words: &[Option<String>]) -> Result<WordVectors> {
    let indices = indices_by_word(words);
    let mut vectors = WordVectors { values: Vec::new(), known: vec![false; words.len()], dimension: 0 };
    let mut announced_rows = None;
    let mut rows = 0u64;
    let mut line = Vec::new();
    let mut number = 0u64;
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line).map_err(|error| {
            let found = format!("an unreadable line ({error})");
            line_error(path, number + 1, found, "a complete text file", "download it again")
        })?;
        if length == 0 {
            break;
        }
        number += 1;
        let text = line.trim_ascii_end();
        if number == 1 {
            if let Some((count, dimension)) = header(text) {
                announced_rows = Some(count);
                vectors.set_dimension(dimension);
                continue;
            }
        }
        if text.is_empty() {
            continue;
        }
        if vectors.dimension == 0 {
            let dimension = first_dimension(text).ok_or_else(|| {
                let shown = String::from_utf8_lossy(text.get(..SHOWN_BYTES).unwrap_or(text)).into_owned();
                let advice = "give a word2vec or GloVe text file, a fastText .bin or a spaCy folder";
                line_error(path, number, format!("{shown:?}"), "a header or a word with its numbers", advice)
            })?;
            vectors.set_dimension(dimension);
        }
        rows += 1;
        let dimension = vectors.dimension;
        let (word, numbers) = split_word(text, dimension).ok_or_else(|| {
            let found = format!("{} fields", text.split(|&byte| byte == b' ').count());
            line_error(path, number, found, format!("a word and {dimension} numbers"), DAMAGED)
        })?;
        let Some(word_indices) = indices.get(word) else { continue };
        if word_indices.iter().any(|&index| vectors.known.get(index) == Some(&true)) {
            continue;
        }
        let row = parse_numbers(numbers, dimension).ok_or_else(|| {
            let found = format!("{:?} with something else", String::from_utf8_lossy(word));
            line_error(path, number, found, format!("{dimension} finite numbers"), DAMAGED)
        })?;
        for &index in word_indices {
            vectors.set_row(index, &row);
        }
    }
    if vectors.dimension == 0 {
        let expected = "one word and its numbers per line";
        return Err(line_error(path, number, "no vector", expected, "the file is empty: download it again"));
    }
    if let Some(count) = announced_rows.filter(|&count| count != rows) {
        let expected = format!("{count} vectors, as its first line says");
        let advice = "the file is truncated: download it again";
        return Err(line_error(path, number, format!("{rows} vectors"), expected, advice));
    }
    Ok(vectors)
}

impl WordVectors {
    /// Sets the width of the rows and fills them with zeros.
    fn set_dimension(&mut self, dimension: usize) {
        self.dimension = dimension;
        self.values = vec![0.0; self.known.len() * dimension];
    }

    /// Sets the vector of word `index`.
    fn set_row(&mut self, index: usize, row: &[f32]) {
        let target = self.values.chunks_exact_mut(self.dimension).nth(index);
        if let (Some(target), Some(known)) = (target, self.known.get_mut(index)) {
            target.copy_from_slice(row);
            *known = true;
        }
    }
}

fn line_error(path: &Path, line: u64, found: impl Into<String>, expected: impl Into<String>, advice: &str) -> Error {
    Error::input(format!("{}, line {line}", path.display()), found, expected, advice)
}

/// Number of vectors and their dimension, if the line is a word2vec header.
fn header(text: &[u8]) -> Option<(u64, usize)> {
    let text = std::str::from_utf8(text).ok()?;
    let (count, dimension) = text.split_once(' ')?;
    let dimension = dimension.trim().parse().ok().filter(|dimension| (1..=1 << 16).contains(dimension))?;
    Some((count.parse().ok()?, dimension))
}

/// The dimension of a file without a header, from its first line; `None` if the line is not a word with two or more numbers.
fn first_dimension(text: &[u8]) -> Option<usize> {
    let dimension = text.split(|&byte| byte == b' ').count() - 1;
    if dimension < 2 {
        return None;
    }
    let (_, numbers) = split_word(text, dimension)?;
    parse_numbers(numbers, dimension).map(|_| dimension)
}

/// The word and the last `dimension` fields of a line. The word is everything before these fields, so it may contain spaces.
fn split_word(text: &[u8], dimension: usize) -> Option<(&[u8], &[u8])> {
    let space = memchr::memrchr_iter(b' ', text).nth(dimension.checked_sub(1)?)?;
    Some((text.get(..space)?, text.get(space + 1..)?))
}

/// `dimension` finite numbers with a space between two of them.
fn parse_numbers(numbers: &[u8], dimension: usize) -> Option<Vec<f32>> {
    let text = std::str::from_utf8(numbers).ok()?;
    let parse = |field: &str| field.parse::<f32>().ok().filter(|value| value.is_finite());
    let row: Option<Vec<f32>> = text.split(' ').map(parse).collect();
    row.filter(|row| row.len() == dimension)
}
