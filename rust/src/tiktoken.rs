//! Reads tiktoken ranks (`base64 rank`, one token a line) into a [`Vocabulary`].
use base64::Engine;
use rayon::prelude::*;

use crate::cover::Segmenter;
use crate::error::{Error, Result};
use crate::index::Lookups;
use crate::token::{lay_out, Entry, Kind, Vocabulary, SPECIAL};
use crate::tokenizer_json::MAX_SIZE;

/// Tokens of a stretch of lines: their bytes, flat, and for each its rank and where its bytes end.
type Part = (Vec<u8>, Vec<(usize, usize)>);

/// A line that is no token: where it starts, and what is wrong with it.
struct Fault(usize, String);

/// Parses `data`, a ranks file called `name` in messages; `specials` are spelled tokens with their ids.
pub fn read(data: &[u8], name: &str, specials: &[(String, u32)]) -> Result<Vocabulary> {
    if data.starts_with(b"version https://git-lfs") {
        return Err(Error::input(
            name,
            "a git-lfs pointer",
            "tiktoken ranks",
            "fetch the file it points to: git lfs pull",
        ));
    }
    let mut parts = Vec::new();
    // Joined in order, so that the first fault of the file is the one reported.
    for part in stretches(data).into_par_iter().map(|(start, end)| read_lines(data, start, end)).collect::<Vec<_>>() {
        parts.push(part.map_err(|Fault(at, found)| {
            let line = data[..at].iter().filter(|&&b| b == b'\n').count() + 1;
            let expected = "a base64 token, a space and its rank";
            Error::input(format!("{name}, line {line}"), found, expected, "fetch the file again; it may be truncated")
        })?);
    }
    let own: usize = parts.iter().map(|part| part.1.len()).sum();
    if own == 0 {
        return Err(Error::input(name, "no token", "one token a line", "name a tiktoken ranks file"));
    }
    let mut entries: Vec<Entry<'_, [u8]>> = Vec::with_capacity(own + specials.len());
    for (bytes, tokens) in &parts {
        let mut start = 0;
        for &(id, end) in tokens {
            entries.push(Entry { id, spelling: &bytes[start..end], flags: 0 });
            start = end;
        }
    }
    for (text, id) in specials {
        if u64::from(*id) >= MAX_SIZE {
            let found = format!("special token id {id}");
            return Err(Error::input(name, found, format!("ids below {MAX_SIZE}"), "give the ids of the tokenizer"));
        }
        entries.push(Entry { id: *id as usize, spelling: text.as_bytes(), flags: SPECIAL });
    }
    let laid_out = lay_out(&entries, own, |entry, out| out.extend_from_slice(entry.spelling));
    let (canonical, spelling, flags) = laid_out.map_err(|[one, _]| {
        let found = format!("two tokens of rank {}", entries[one].id);
        Error::input(name, found, "one token for each rank", "fetch the file again; it may be damaged")
    })?;
    Ok(Vocabulary {
        kind: Kind::Tiktoken,
        canonical,
        spelling,
        flags,
        segmenter: Segmenter::Ranks,
        lookups: Lookups::default(),
    })
}

/// Stretches of whole lines, about 256 KiB each.
fn stretches(data: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut start = 0;
    while start < data.len() {
        let least = data.len().min(start + (1 << 18));
        let end = data[least..].iter().position(|&b| b == b'\n').map_or(data.len(), |more| least + more + 1);
        found.push((start, end));
        start = end;
    }
    found
}

fn read_lines(data: &[u8], start: usize, end: usize) -> std::result::Result<Part, Fault> {
    let mut bytes = Vec::with_capacity(end - start);
    let mut tokens = Vec::with_capacity((end - start) / 12);
    let mut at = start;
    for line in data[start..end].split(|&b| b == b'\n') {
        let text = line.strip_suffix(b"\r").unwrap_or(line);
        let shown = || format!("{:?}", String::from_utf8_lossy(&text[..text.len().min(40)]));
        if !text.is_empty() {
            let fault = || Fault(at, shown());
            let space = text.iter().position(|&b| b == b' ').ok_or_else(fault)?;
            let rank = std::str::from_utf8(&text[space + 1..]).ok().and_then(|rank| rank.trim().parse::<u64>().ok());
            let rank = rank.filter(|&rank| rank < MAX_SIZE).ok_or_else(fault)?;
            base64::engine::general_purpose::STANDARD
                .decode_vec(&text[..space], &mut bytes)
                .map_err(|error| Fault(at, format!("{} ({error})", shown())))?;
            tokens.push((rank as usize, bytes.len()));
        }
        at += line.len() + 1;
    }
    Ok((bytes, tokens))
}
