//! Byte-exact token identity: every token as the bytes it stands for.
//!
//! A word start is a leading space (0x20) of the canonical bytes, whatever mark the tokenizer spells it with.
use crate::cover::Segmenter;

/// Flag of a token whose canonical bytes begin with a space: it starts a word.
pub const WORD_START: u8 = 1;
/// Flag of a special token: it stands for a role, not for text.
pub const SPECIAL: u8 = 2;
/// Flag of a byte-fallback piece such as `<0x0A>`.
pub const BYTE_PIECE: u8 = 4;
/// Flag of an id that no token has.
pub const HOLE: u8 = 8;
/// Flag of an added token that is not special: its content is plain text.
pub const ADDED: u8 = 16;

/// How a tokenizer spells bytes and word starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// BPE over a fixed 256-character spelling of bytes.
    ByteLevelBpe,
    /// Unigram pieces, U+2581 for a space.
    SentencePieceUnigram,
    /// BPE pieces, U+2581 for a space, often with byte-fallback pieces.
    SentencePieceBpe,
    /// Words and `##` continuations.
    WordPiece,
    /// Raw bytes with ranks.
    Tiktoken,
}

impl Kind {
    /// The name Python sees.
    pub fn name(self) -> &'static str {
        match self {
            Kind::ByteLevelBpe => "byte_level_bpe",
            Kind::SentencePieceUnigram => "sentencepiece_unigram",
            Kind::SentencePieceBpe => "sentencepiece_bpe",
            Kind::WordPiece => "wordpiece",
            Kind::Tiktoken => "tiktoken",
        }
    }
}

/// Byte strings in one flat buffer: entry `i` is `bytes[offsets[i]..offsets[i + 1]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// All entries, one after the other.
    pub bytes: Vec<u8>,
    /// Where each entry starts, and the end of the last.
    pub offsets: Vec<usize>,
}

impl Table {
    /// An empty table with room for `entries` entries of `bytes` bytes in all.
    pub fn with_capacity(entries: usize, bytes: usize) -> Self {
        let mut offsets = Vec::with_capacity(entries + 1);
        offsets.push(0);
        Table { bytes: Vec::with_capacity(bytes), offsets }
    }

    /// Ends the entry whose bytes were appended to `bytes`.
    pub fn close(&mut self) {
        self.offsets.push(self.bytes.len());
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entry `id`.
    pub fn get(&self, id: usize) -> &[u8] {
        &self.bytes[self.offsets[id]..self.offsets[id + 1]]
    }
}

/// A vocabulary by id: canonical bytes, native spelling, flags, and how it segments text.
#[derive(Debug)]
pub struct Vocabulary {
    /// How it spells tokens.
    pub kind: Kind,
    /// Canonical bytes of each id; empty for a hole.
    pub canonical: Table,
    /// Native spelling of each id; decides between tokens of equal canonical bytes.
    pub spelling: Table,
    /// [`WORD_START`] and the other flags of each id.
    pub flags: Vec<u8>,
    /// What the tokenizer's own segmentation needs.
    pub segmenter: Segmenter,
}

impl Vocabulary {
    /// Largest id + 1, holes counted.
    pub fn size(&self) -> usize {
        self.flags.len()
    }

    /// Whether `id` can be matched as text: neither special nor a hole.
    pub fn is_text(&self, id: usize) -> bool {
        self.flags[id] & (SPECIAL | HOLE) == 0
    }

    /// The text under which a static-vector file would list the token, if it is a whole piece of text.
    ///
    /// `None` for special tokens, byte pieces, holes, blanks and bytes that are not UTF-8 by themselves.
    pub fn word(&self, id: usize) -> Option<&str> {
        if self.flags[id] & (SPECIAL | HOLE | BYTE_PIECE) != 0 {
            return None;
        }
        let text = std::str::from_utf8(self.canonical.get(id)).ok()?.trim();
        (!text.is_empty()).then_some(text)
    }
}

/// One token of a vocabulary under construction.
pub struct Entry<'a> {
    /// Its id.
    pub id: usize,
    /// Its native spelling.
    pub spelling: &'a [u8],
    /// Flags other than [`WORD_START`] and [`HOLE`].
    pub flags: u8,
}

/// Lays entries out by id, turning each spelling into canonical bytes.
///
/// Ids that no entry has become holes; of two entries with one id the later wins (added tokens are given last).
pub fn lay_out(entries: &[Entry<'_>], canonical: impl Fn(&Entry<'_>, &mut Vec<u8>)) -> (Table, Table, Vec<u8>) {
    let size = entries.iter().map(|e| e.id + 1).max().unwrap_or(0);
    let mut at = vec![usize::MAX; size];
    for (index, entry) in entries.iter().enumerate() {
        at[entry.id] = index;
    }
    let total: usize = entries.iter().map(|e| e.spelling.len()).sum();
    let mut tokens = Table::with_capacity(size, total);
    let mut spellings = Table::with_capacity(size, total);
    let mut flags = Vec::with_capacity(size);
    for index in at {
        let mut flag = HOLE;
        if index != usize::MAX {
            let entry = &entries[index];
            let start = tokens.bytes.len();
            canonical(entry, &mut tokens.bytes);
            spellings.bytes.extend_from_slice(entry.spelling);
            flag = entry.flags;
            if flag & SPECIAL == 0 && tokens.bytes.get(start) == Some(&b' ') {
                flag |= WORD_START;
            }
        }
        tokens.close();
        spellings.close();
        flags.push(flag);
    }
    (tokens, spellings, flags)
}

/// The byte a byte-fallback piece `<0xNN>` stands for.
pub fn byte_piece(spelling: &[u8]) -> Option<u8> {
    match spelling {
        [b'<', b'0', b'x', high, low, b'>'] => {
            let digit = |c: &u8| (*c as char).to_digit(16);
            Some((digit(high)? * 16 + digit(low)?) as u8)
        }
        _ => None,
    }
}

/// The byte that a character of the byte-level alphabet spells.
///
/// Printable characters of Latin-1 spell themselves; the other 68 bytes are spelled by U+0100 and up, in byte order.
pub fn byte_of_char(c: char) -> Option<u8> {
    let code = c as u32;
    match code {
        33..=126 | 161..=172 | 174..=255 => Some(code as u8),
        0x100..=0x143 => {
            let rank = (code - 0x100) as u8;
            // 0..=32 are bytes 0..=32, 33..=66 are 127..=160, 67 is 173.
            Some(match rank {
                0..=32 => rank,
                33..=66 => rank - 33 + 127,
                _ => 173,
            })
        }
        _ => None,
    }
}

/// Appends the bytes a byte-level spelling stands for; characters outside the alphabet keep their UTF-8 bytes.
pub fn push_byte_level(spelling: &str, out: &mut Vec<u8>) {
    for c in spelling.chars() {
        match byte_of_char(c) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Appends a SentencePiece spelling with every U+2581 as a space.
pub fn push_sentencepiece(spelling: &str, out: &mut Vec<u8>) {
    let mut rest = spelling;
    while let Some(at) = rest.find('\u{2581}') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        out.push(b' ');
        rest = &rest[at + '\u{2581}'.len_utf8()..];
    }
    out.extend_from_slice(rest.as_bytes());
}

/// Appends a WordPiece spelling: a continuation loses its prefix, everything else gains a leading space.
pub fn push_wordpiece(spelling: &str, prefix: &str, out: &mut Vec<u8>) {
    match spelling.strip_prefix(prefix).filter(|_| !prefix.is_empty()) {
        Some(rest) => out.extend_from_slice(rest.as_bytes()),
        None => {
            out.push(b' ');
            out.extend_from_slice(spelling.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        let mut seen = [false; 256];
        for c in (0..0x200).filter_map(char::from_u32) {
            if let Some(byte) = byte_of_char(c) {
                assert!(!std::mem::replace(&mut seen[byte as usize], true), "{byte} spelled twice");
            }
        }
        assert!(seen.iter().all(|s| *s));
        assert_eq!(byte_of_char('\u{120}'), Some(b' '));
        assert_eq!(byte_of_char('\u{10a}'), Some(b'\n'));
    }

    #[test]
    fn byte_pieces_cover_all_bytes() {
        for byte in 0..=255u8 {
            assert_eq!(byte_piece(format!("<0x{byte:02X}>").as_bytes()), Some(byte));
        }
        assert_eq!(byte_piece(b"<0x1>"), None);
        assert_eq!(byte_piece(b"<0xG0>"), None);
    }

    #[test]
    fn spellings_become_bytes() {
        let mut out = Vec::new();
        push_sentencepiece("\u{2581}\u{2581}a\u{2581}", &mut out);
        assert_eq!(out, b"  a ");
        out.clear();
        push_wordpiece("##llo", "##", &mut out);
        push_wordpiece("he", "##", &mut out);
        assert_eq!(out, b"llo he");
    }
}
