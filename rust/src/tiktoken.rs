//! Reads tiktoken ranks (`base64 rank`, one token a line) into a [`Vocabulary`].
use base64::Engine;

use crate::cover::Segmenter;
use crate::error::{Error, Result};
use crate::token::{lay_out, Entry, Kind, Vocabulary, SPECIAL};
use crate::tokenizer_json::MAX_SIZE;

/// Parses `data`, a ranks file called `name` in messages; `specials` are spelled tokens with their ids.
pub fn read(data: &[u8], name: &str, specials: &[(String, u32)]) -> Result<Vocabulary> {
    let fault = |line: usize, found: String| {
        Error::input(
            format!("{name}, line {}", line + 1),
            found,
            "a base64 token, a space and its rank",
            "fetch the file again; it may be truncated",
        )
    };
    let mut bytes = Vec::with_capacity(data.len());
    let mut spans = Vec::new();
    for (number, line) in data.split(|&b| b == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let shown = || format!("{:?}", String::from_utf8_lossy(&line[..line.len().min(40)]));
        let space = line.iter().position(|&b| b == b' ').ok_or_else(|| fault(number, shown()))?;
        let rank = std::str::from_utf8(&line[space + 1..]).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let rank = rank.filter(|&rank| rank < MAX_SIZE).ok_or_else(|| fault(number, shown()))?;
        let start = bytes.len();
        base64::engine::general_purpose::STANDARD
            .decode_vec(&line[..space], &mut bytes)
            .map_err(|error| fault(number, format!("{} ({error})", shown())))?;
        spans.push((rank as usize, start, bytes.len()));
    }
    if spans.is_empty() {
        return Err(Error::input(name, "no token", "one token a line", "name a tiktoken ranks file"));
    }
    let mut entries: Vec<Entry<'_>> =
        spans.iter().map(|&(id, start, end)| Entry { id, spelling: &bytes[start..end], flags: 0 }).collect();
    for (text, id) in specials {
        if u64::from(*id) >= MAX_SIZE {
            return Err(Error::input(
                name,
                format!("special token id {id}"),
                format!("ids below {MAX_SIZE}"),
                "mend it",
            ));
        }
        entries.push(Entry { id: *id as usize, spelling: text.as_bytes(), flags: SPECIAL });
    }
    let (canonical, spelling, flags) = lay_out(&entries, |entry, out| out.extend_from_slice(entry.spelling));
    Ok(Vocabulary { kind: Kind::Tiktoken, canonical, spelling, flags, segmenter: Segmenter::Ranks })
}
