//! Reads word vectors from word lists in one pass: word2vec text and `.vec` with a header, GloVe without one, and the binary
//! format of word2vec.
use std::io::{BufRead, Cursor, Read};
use std::path::Path;

use memchr::{memchr, memrchr2_iter};

use super::input::{check_size, open, read_error, Input, MAX_LINE_BYTES, MAX_WIDTH};
use super::{indices_by_word, WordVectors};
use crate::error::{Error, Result};

/// An error message shows at most this many bytes of a line.
const SHOWN_BYTES: usize = 40;
/// The format of a file is recognised by at most this many bytes of its beginning.
const START_BYTES: u64 = 1 << 18;
/// Bytes of the beginning in which no control character may stand, if the file is taken for text.
const SAMPLE_BYTES: usize = 4096;
/// Longest header line of a word2vec file, in bytes.
const HEADER_BYTES: usize = 64;
/// Bytes of a 32-bit floating-point number.
const F32_BYTES: usize = 4;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

const DAMAGED: &str = "the file is damaged: download it again";

/// Format of a file with one vector for each of its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFormat {
    /// One line for each word.
    Text,
    /// word2vec's binary format.
    Binary,
}

/// Takes the beginning of a reader, and returns it with a reader of the whole content.
///
/// # Errors
///
/// [`Error::Input`] for content that cannot be unpacked.
pub fn peek(mut input: Input, path: &Path) -> Result<(Vec<u8>, Box<dyn BufRead + Send>)> {
    let mut start = Vec::new();
    let read = input.reader.by_ref().take(START_BYTES).read_to_end(&mut start);
    read.map_err(|error| read_error(path.display().to_string(), &error))?;
    let whole = Cursor::new(start.clone()).chain(input.reader);
    Ok((start, Box::new(whole)))
}

/// Recognises the binary format of word2vec: a header in text, then a word, a space and numbers in binary.
pub fn format_of(start: &[u8]) -> ListFormat {
    let start = start.strip_prefix(BYTE_ORDER_MARK).unwrap_or(start);
    let line_end = memchr(b'\n', start).unwrap_or(start.len());
    let (first, rest) = start.split_at(line_end);
    let Some((_, dimension)) = header(first.trim_ascii_end()) else { return ListFormat::Text };
    let rest = rest.get(1..).unwrap_or_default();
    let line = rest.get(..memchr(b'\n', rest).unwrap_or(rest.len())).unwrap_or_default().trim_ascii_end();
    if split_word(line, dimension).is_some_and(|(_, numbers)| parse_numbers(numbers, dimension).is_some()) {
        return ListFormat::Text;
    }
    let numbers = memchr(b' ', rest).and_then(|space| rest.get(space + 1..)).unwrap_or_default();
    let numbers = numbers.get(..dimension * F32_BYTES).unwrap_or(numbers);
    // A few bytes of numbers can look like text by chance, but not all of the beginning.
    if is_text(numbers) && !rest.iter().take(SAMPLE_BYTES).any(is_control) {
        ListFormat::Text
    } else {
        ListFormat::Binary
    }
}

/// Whether a file begins with a word2vec header.
pub fn starts_with_header(start: &[u8]) -> bool {
    let start = start.strip_prefix(BYTE_ORDER_MARK).unwrap_or(start);
    let line = start.get(..memchr(b'\n', start).unwrap_or(start.len())).unwrap_or_default();
    header(line.trim_ascii_end()).is_some()
}

/// Whether bytes are UTF-8 without control characters; a character that is cut at the end does not count.
fn is_text(bytes: &[u8]) -> bool {
    let valid = match std::str::from_utf8(bytes) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    valid && !bytes.iter().any(is_control)
}

/// Whether a byte is a control character that no text file has.
fn is_control(&byte: &u8) -> bool {
    byte < b' ' && !matches!(byte, b'\t' | b'\n' | b'\r')
}

/// The beginning of a line for a message; never control characters of the file.
fn shown(bytes: &[u8]) -> String {
    let start = bytes.get(..SHOWN_BYTES).unwrap_or(bytes);
    if is_text(start) {
        format!("{:?}", String::from_utf8_lossy(start))
    } else {
        "binary data".to_owned()
    }
}

/// Reads the vectors of `words` from a word list. Of equal words in the file the first counts. Only these vectors are kept in
/// memory.
///
/// # Errors
///
/// [`Error::Io`] for a file that cannot be read; [`Error::Input`] for an entry that is not a word with finite numbers, a file
/// without vectors, and a file that has fewer vectors than its header says.
pub fn read(path: &Path, words: &[Option<String>]) -> Result<WordVectors> {
    let (start, reader) = peek(open(path)?, path)?;
    read_list(reader, format_of(&start), path, words)
}

/// As [`read`], from an open reader of the given format.
///
/// # Errors
///
/// As [`read`].
pub fn read_list(
    reader: Box<dyn BufRead + Send>,
    format: ListFormat,
    path: &Path,
    words: &[Option<String>],
) -> Result<WordVectors> {
    let indices = indices_by_word(words);
    let mut vectors = WordVectors { values: Vec::new(), known: vec![false; words.len()], dimension: 0 };
    each_vector(reader, format, path, |entry| {
        if vectors.dimension == 0 {
            check_size(path, words.len(), entry.dimension)?;
            vectors.set_dimension(entry.dimension);
        }
        let Some(word_indices) = indices.get(entry.word) else { return Ok(()) };
        if word_indices.iter().any(|&index| vectors.known.get(index) == Some(&true)) {
            return Ok(());
        }
        let row = match format {
            ListFormat::Binary => from_bytes(entry.numbers),
            ListFormat::Text => parse_numbers(entry.numbers, entry.dimension).ok_or_else(|| {
                let found = format!("{} with something else", shown(entry.word));
                let expected = format!("{} finite numbers", entry.dimension);
                Error::input(entry.position(path), found, expected, DAMAGED)
            })?,
        };
        for &index in word_indices {
            vectors.set_row(index, &row);
        }
        Ok(())
    })?;
    Ok(vectors)
}

/// The words of a word list in order, each once.
///
/// # Errors
///
/// As [`read`].
pub fn list_words(path: &Path) -> Result<Vec<String>> {
    let (start, reader) = peek(open(path)?, path)?;
    let mut seen = rustc_hash::FxHashSet::default();
    let mut words = Vec::new();
    each_vector(reader, format_of(&start), path, |entry| {
        let word = String::from_utf8_lossy(entry.word).into_owned();
        if seen.insert(word.clone()) {
            words.push(word);
        }
        Ok(())
    })?;
    Ok(words)
}

/// One word of a word list with its numbers, which are text or bytes.
struct Entry<'a> {
    word: &'a [u8],
    numbers: &'a [u8],
    dimension: usize,
    /// Number of the line, or of the vector in a binary file, from 1.
    number: u64,
    format: ListFormat,
}

impl Entry<'_> {
    fn position(&self, path: &Path) -> String {
        position(path, self.format, self.number)
    }
}

/// Name of a line or vector of a file, for messages.
fn position(path: &Path, format: ListFormat, number: u64) -> String {
    let part = if format == ListFormat::Text { "line" } else { "vector" };
    format!("{}, {part} {number}", path.display())
}

/// Calls `visit` for each vector of a word list, and checks that there are vectors, and as many as its header says or more.
fn each_vector(
    reader: Box<dyn BufRead + Send>,
    format: ListFormat,
    path: &Path,
    visit: impl FnMut(Entry<'_>) -> Result<()>,
) -> Result<()> {
    let (count, announced, number) = match format {
        ListFormat::Text => each_line(reader, path, visit)?,
        ListFormat::Binary => each_binary(reader, path, visit)?,
    };
    if count == 0 {
        let expected = "one word and its numbers per line";
        return Err(Error::input(position(path, format, number), "no vector", expected, "download the file again"));
    }
    if let Some(announced) = announced.filter(|&announced| announced > count) {
        let expected = format!("{announced} vectors, as its first line says");
        let advice = "the file is truncated: download it again";
        return Err(Error::input(position(path, format, number), format!("{count} vectors"), expected, advice));
    }
    Ok(())
}

/// Number of vectors, the number that the header announces, and the number of the last line or vector.
type Counts = (u64, Option<u64>, u64);

fn each_line(
    mut reader: Box<dyn BufRead + Send>,
    path: &Path,
    mut visit: impl FnMut(Entry<'_>) -> Result<()>,
) -> Result<Counts> {
    let (mut line, mut number, mut count, mut announced, mut dimension) = (Vec::new(), 0u64, 0u64, None, 0);
    let format = ListFormat::Text;
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line);
        let length = read.map_err(|error| read_error(position(path, format, number + 1), &error))?;
        if length == 0 {
            return Ok((count, announced, number));
        }
        number += 1;
        if length > MAX_LINE_BYTES {
            let expected = format!("lines of at most {MAX_LINE_BYTES} bytes: a word and its numbers");
            let found = if is_text(line.get(..SHOWN_BYTES).unwrap_or(&line)) { "a longer line" } else { "binary data" };
            return Err(Error::input(position(path, format, number), found, expected, KINDS));
        }
        let mut text = line.trim_ascii_end();
        if number == 1 {
            text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
            if let Some((rows, width)) = header(text) {
                (announced, dimension) = (Some(rows), width);
                continue;
            }
        }
        if text.is_empty() {
            continue;
        }
        if dimension == 0 {
            dimension = first_dimension(text).ok_or_else(|| {
                let expected = "a header or a word with its numbers";
                Error::input(position(path, format, number), shown(text), expected, KINDS)
            })?;
        }
        count += 1;
        let (word, numbers) = split_word(text, dimension).ok_or_else(|| {
            let found = format!("{} fields", text.split(is_separator).filter(|field| !field.is_empty()).count());
            Error::input(position(path, format, number), found, format!("a word and {dimension} numbers"), DAMAGED)
        })?;
        visit(Entry { word, numbers, dimension, number, format })?;
    }
}

const KINDS: &str = "give a word2vec or GloVe text file, a fastText .bin or a spaCy folder";

fn each_binary(
    mut reader: Box<dyn BufRead + Send>,
    path: &Path,
    mut visit: impl FnMut(Entry<'_>) -> Result<()>,
) -> Result<Counts> {
    let format = ListFormat::Binary;
    let mut word = Vec::new();
    let read = reader.by_ref().take(HEADER_BYTES as u64).read_until(b'\n', &mut word);
    read.map_err(|error| read_error(path.display().to_string(), &error))?;
    let text = word.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&word).trim_ascii_end();
    let (announced, dimension) = header(text).ok_or_else(|| {
        Error::input(path.display().to_string(), shown(text), "a header: number of vectors and their width", DAMAGED)
    })?;
    let mut numbers = vec![0; dimension * F32_BYTES];
    let mut count = 0u64;
    loop {
        word.clear();
        // Some programs write a line end after each vector; it then stands before the next word.
        let read = reader.by_ref().take(MAX_LINE_BYTES as u64).read_until(b' ', &mut word);
        read.map_err(|error| read_error(position(path, format, count + 1), &error))?;
        let text = word.strip_prefix(b"\n").unwrap_or(&word);
        if text.is_empty() {
            return Ok((count, Some(announced), count));
        }
        let Some(text) = text.strip_suffix(b" ") else {
            return Err(truncated(path, count, announced));
        };
        reader.read_exact(&mut numbers).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => truncated(path, count, announced),
            _ => read_error(position(path, format, count + 1), &error),
        })?;
        count += 1;
        visit(Entry { word: text, numbers: &numbers, dimension, number: count, format })?;
    }
}

fn truncated(path: &Path, count: u64, announced: u64) -> Error {
    let found = format!("a file that ends inside vector {}", count + 1);
    let expected = format!("{announced} whole vectors, as its first line says");
    Error::input(path.display().to_string(), found, expected, "the file is truncated: download it again")
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

/// Number of vectors and their dimension, if the line is a word2vec header.
fn header(text: &[u8]) -> Option<(u64, usize)> {
    let text = std::str::from_utf8(text.get(..HEADER_BYTES).unwrap_or(text)).ok()?;
    let (count, dimension) = text.split_once([' ', '\t'])?;
    let dimension = dimension.trim().parse().ok().filter(|dimension| (1..=MAX_WIDTH).contains(dimension))?;
    Some((count.parse().ok()?, dimension))
}

fn is_separator(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// The dimension of a file without a header, from its first line; `None` if the line is not a word with two or more numbers.
fn first_dimension(text: &[u8]) -> Option<usize> {
    let dimension = text.split(is_separator).filter(|field| !field.is_empty()).count().checked_sub(1)?;
    if !(2..=MAX_WIDTH).contains(&dimension) {
        return None;
    }
    let (_, numbers) = split_word(text, dimension)?;
    parse_numbers(numbers, dimension).map(|_| dimension)
}

/// The word and the last `dimension` fields of a line. The word is everything before these fields, so it may contain spaces.
/// Fields are separated by one or more spaces or tabs.
fn split_word(text: &[u8], dimension: usize) -> Option<(&[u8], &[u8])> {
    let (mut fields, mut next) = (0, text.len());
    for separator in memrchr2_iter(b' ', b'\t', text) {
        if separator + 1 < next {
            fields += 1;
            if fields == dimension {
                return Some((text.get(..separator)?.trim_ascii_end(), text.get(separator + 1..)?));
            }
        }
        next = separator;
    }
    None
}

/// `dimension` finite numbers with separators between them.
fn parse_numbers(numbers: &[u8], dimension: usize) -> Option<Vec<f32>> {
    let text = std::str::from_utf8(numbers).ok()?;
    let parse = |field: &str| field.parse::<f32>().ok().filter(|value| value.is_finite());
    let row: Option<Vec<f32>> = text.split([' ', '\t']).filter(|field| !field.is_empty()).map(parse).collect();
    row.filter(|row| row.len() == dimension)
}

/// Little-endian numbers of a binary file.
fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    let number = |bytes: &[u8]| bytes.first_chunk().map_or(0.0, |bytes| f32::from_le_bytes(*bytes));
    bytes.chunks_exact(F32_BYTES).map(number).collect()
}
