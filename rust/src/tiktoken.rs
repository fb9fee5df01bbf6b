//! Reads a tiktoken ranks file into a [`Vocabulary`]. Each line is a token in base64, a space and the rank, which is the id.
use base64::engine::general_purpose::STANDARD as BASE64;
use base64::Engine;
use memchr::{memchr, memchr_iter};
use rayon::prelude::*;

use crate::error::{refuse_git_lfs_pointer, Error, Result};
use crate::token::{
    DuplicateId, Segmenter, TokenEntry, TokenTable, TokenizerKind, Vocabulary, MAX_VOCABULARY_SIZE, SPECIAL,
};

/// Lines are decoded in parallel, in chunks of at least this many bytes.
const CHUNK_BYTES: usize = 1 << 18;
/// An error message shows at most this many bytes of a line.
const SHOWN_BYTES: usize = 40;

/// The tokens of one chunk of lines.
struct DecodedChunk {
    /// Bytes of all tokens, joined.
    bytes: Vec<u8>,
    /// Rank of each token and the end of its bytes in `bytes`.
    tokens: Vec<(usize, usize)>,
}

/// A line that is not a token with its rank.
struct InvalidLine {
    /// Start of the line in the file, in bytes.
    start: usize,
    /// What the line contains.
    found: String,
}

/// Parses `data`, the content of a tiktoken ranks file; error messages call the file `name`.
///
/// `specials` are the special tokens, which the file does not contain, as spelling and id.
///
/// # Errors
///
/// [`Error::Input`] for a line that is not a token with its rank, two tokens of one rank, a file without tokens, an id of
/// [`MAX_VOCABULARY_SIZE`] or more, and a Git LFS pointer.
pub fn read(data: &[u8], name: &str, specials: &[(String, u32)]) -> Result<Vocabulary> {
    refuse_git_lfs_pointer(data, name, "tiktoken ranks")?;
    let decoded: Vec<_> =
        line_chunks(data).into_par_iter().map(|(start, end)| decode_lines(data, start, end)).collect();
    // In the order of the file, so that the first invalid line is reported.
    let chunks =
        decoded.into_iter().collect::<std::result::Result<Vec<_>, _>>().map_err(|InvalidLine { start, found }| {
            let line = memchr_iter(b'\n', &data[..start]).count() + 1;
            let expected = "a base64 token, a space and its rank";
            Error::input(
                format!("{name}, line {line}"),
                found,
                expected,
                "download the file again; it may be truncated",
            )
        })?;
    let model_count: usize = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
    if model_count == 0 {
        return Err(Error::input(name, "no token", "one token per line", "give the path of a tiktoken ranks file"));
    }
    let mut entries: Vec<TokenEntry<'_, [u8]>> = Vec::with_capacity(model_count + specials.len());
    for chunk in &chunks {
        let mut start = 0;
        for &(id, end) in &chunk.tokens {
            entries.push(TokenEntry { id, spelling: &chunk.bytes[start..end], flags: 0 });
            start = end;
        }
    }
    for (text, id) in specials {
        if u64::from(*id) >= MAX_VOCABULARY_SIZE {
            let found = format!("special token id {id}");
            let expected = format!("ids below {MAX_VOCABULARY_SIZE}");
            return Err(Error::input(name, found, expected, "give the ids of the tokenizer"));
        }
        entries.push(TokenEntry { id: *id as usize, spelling: text.as_bytes(), flags: SPECIAL });
    }
    let table = TokenTable::from_entries(&entries, model_count, |entry, out| out.extend_from_slice(entry.spelling));
    let TokenTable { canonical, spelling, flags } = table.map_err(|DuplicateId { first, .. }| {
        let found = format!("two tokens of rank {}", entries[first].id);
        Error::input(name, found, "one token for each rank", "download the file again; it may be damaged")
    })?;
    let (kind, segmenter) = (TokenizerKind::Tiktoken, Segmenter::Ranks);
    Ok(Vocabulary { kind, canonical, spelling, flags, segmenter, marks_word_ends: false })
}

/// Start and end of chunks of complete lines of about [`CHUNK_BYTES`] bytes.
fn line_chunks(data: &[u8]) -> Vec<(usize, usize)> {
    let mut chunks = Vec::new();
    let mut start = 0;
    while start < data.len() {
        let minimum = data.len().min(start + CHUNK_BYTES);
        let end = memchr(b'\n', &data[minimum..]).map_or(data.len(), |distance| minimum + distance + 1);
        chunks.push((start, end));
        start = end;
    }
    chunks
}

/// Decodes the lines in `data[start..end]`; empty lines are skipped.
fn decode_lines(data: &[u8], start: usize, end: usize) -> std::result::Result<DecodedChunk, InvalidLine> {
    let mut bytes = Vec::with_capacity(end - start);
    let mut tokens = Vec::with_capacity((end - start) / 12);
    let mut line_start = start;
    for line in data[start..end].split(|&byte| byte == b'\n') {
        let text = line.strip_suffix(b"\r").unwrap_or(line);
        if !text.is_empty() {
            let shown = || format!("{:?}", String::from_utf8_lossy(&text[..text.len().min(SHOWN_BYTES)]));
            let invalid = || InvalidLine { start: line_start, found: shown() };
            let (token, rank) = split_at_space(text).ok_or_else(invalid)?;
            let rank = std::str::from_utf8(rank).ok().and_then(|rank| rank.trim().parse::<u64>().ok());
            let rank = rank.filter(|&rank| rank < MAX_VOCABULARY_SIZE).ok_or_else(invalid)?;
            BASE64
                .decode_vec(token, &mut bytes)
                .map_err(|error| InvalidLine { start: line_start, found: format!("{} ({error})", shown()) })?;
            tokens.push((rank as usize, bytes.len()));
        }
        line_start += line.len() + 1;
    }
    Ok(DecodedChunk { bytes, tokens })
}

/// The bytes before and after the first space; `None` without a space.
fn split_at_space(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = text.iter().position(|&byte| byte == b' ')?;
    Some((&text[..space], &text[space + 1..]))
}
