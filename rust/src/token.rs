//! Byte-exact token identity: every token as the bytes it stands for.
//!
//! A word start is a leading space (0x20) of the canonical bytes, whatever mark the tokenizer spells it with.
use crate::cover::Segmenter;
use crate::index::Lookups;

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
    /// Unigram pieces over the same 256-character spelling of bytes.
    ByteLevelUnigram,
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
            Kind::ByteLevelUnigram => "byte_level_unigram",
            Kind::SentencePieceUnigram => "sentencepiece_unigram",
            Kind::SentencePieceBpe => "sentencepiece_bpe",
            Kind::WordPiece => "wordpiece",
            Kind::Tiktoken => "tiktoken",
        }
    }

    /// Whether the model builds text from bytes rather than from characters.
    pub fn by_bytes(self) -> bool {
        matches!(self, Kind::ByteLevelBpe | Kind::ByteLevelUnigram | Kind::Tiktoken)
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
    /// What has been made of all that for lookups.
    pub lookups: Lookups,
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
pub struct Entry<'a, S: ?Sized> {
    /// Its id.
    pub id: usize,
    /// Its native spelling, text or bytes.
    pub spelling: &'a S,
    /// Flags other than [`WORD_START`] and [`HOLE`].
    pub flags: u8,
}

/// Lays entries out by id, turning each spelling into canonical bytes.
///
/// Ids that no entry has become holes. The first `own` entries are the model's: two of them with one id are an error (their
/// places are returned), since an id stands for one token. An added token, given after them, replaces a piece.
pub fn lay_out<S: AsRef<[u8]> + ?Sized>(
    entries: &[Entry<'_, S>],
    own: usize,
    canonical: impl Fn(&Entry<'_, S>, &mut Vec<u8>),
) -> Result<(Table, Table, Vec<u8>), [usize; 2]> {
    let size = entries.iter().map(|e| e.id + 1).max().unwrap_or(0);
    let mut at = vec![usize::MAX; size];
    for (index, entry) in entries.iter().enumerate() {
        let before = std::mem::replace(&mut at[entry.id], index);
        if index < own && before != usize::MAX {
            return Err([before, index]);
        }
    }
    let total: usize = entries.iter().map(|e| e.spelling.as_ref().len()).sum();
    let mut tokens = Table::with_capacity(size, total);
    let mut spellings = Table::with_capacity(size, total);
    let mut flags = Vec::with_capacity(size);
    for index in at {
        let mut flag = HOLE;
        if index != usize::MAX {
            let entry = &entries[index];
            let start = tokens.bytes.len();
            canonical(entry, &mut tokens.bytes);
            spellings.bytes.extend_from_slice(entry.spelling.as_ref());
            flag = entry.flags;
            if flag & SPECIAL == 0 && tokens.bytes.get(start) == Some(&b' ') {
                flag |= WORD_START;
            }
        }
        tokens.close();
        spellings.close();
        flags.push(flag);
    }
    Ok((tokens, spellings, flags))
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

/// What the characters of a spelling stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alphabet {
    /// Themselves.
    Plain,
    /// Bytes, by the table of [`byte_of_char`].
    ByteLevel,
    /// Themselves, but for U+2581: a space.
    Mark,
}

/// How a tokenizer spells its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spelling {
    /// What characters stand for.
    pub alphabet: Alphabet,
    /// Prefix of pieces that continue a word; empty for none.
    pub continuation: String,
    /// Whether what continues nothing starts a word, though no character says so.
    pub starts_words: bool,
}

impl Spelling {
    /// Appends the bytes that a piece of the model stands for.
    pub fn push(&self, spelling: &str, out: &mut Vec<u8>) {
        // The bare prefix continues with nothing: it is a word of its own.
        let prefix = Some(self.continuation.as_str()).filter(|prefix| !prefix.is_empty());
        let rest = prefix.and_then(|prefix| spelling.strip_prefix(prefix)).filter(|rest| !rest.is_empty());
        if rest.is_none() && self.starts_words {
            out.push(b' ');
        }
        let rest = rest.unwrap_or(spelling);
        match self.alphabet {
            Alphabet::Plain => out.extend_from_slice(rest.as_bytes()),
            Alphabet::ByteLevel => push_byte_level(rest, out),
            Alphabet::Mark => push_sentencepiece(rest, out),
        }
    }

    /// Appends the bytes that an added token stands for: its content, which is looked for in the text itself. Only there
    /// is the byte-level spelling not undone; the other rules hold for added tokens too.
    pub fn push_added(&self, content: &str, out: &mut Vec<u8>) {
        match self.alphabet {
            Alphabet::ByteLevel => out.extend_from_slice(content.as_bytes()),
            _ if content.starts_with(' ') => out.extend_from_slice(content.as_bytes()),
            _ => self.push(content, out),
        }
    }
}

/// Appends the bytes a byte-level spelling stands for; characters outside the alphabet keep their UTF-8 bytes.
fn push_byte_level(spelling: &str, out: &mut Vec<u8>) {
    for c in spelling.chars() {
        match byte_of_char(c) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Appends a SentencePiece spelling with every U+2581 as a space.
fn push_sentencepiece(spelling: &str, out: &mut Vec<u8>) {
    let mut rest = spelling;
    while let Some(at) = rest.find('\u{2581}') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        out.push(b' ');
        rest = &rest[at + '\u{2581}'.len_utf8()..];
    }
    out.extend_from_slice(rest.as_bytes());
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

    fn spelled(alphabet: Alphabet, continuation: &str, text: &str) -> Vec<u8> {
        let starts_words = alphabet == Alphabet::Plain;
        let mut out = Vec::new();
        Spelling { alphabet, continuation: continuation.into(), starts_words }.push(text, &mut out);
        out
    }

    #[test]
    fn spellings_become_bytes() {
        assert_eq!(spelled(Alphabet::Mark, "", "\u{2581}\u{2581}a\u{2581}"), b"  a ");
        assert_eq!(spelled(Alphabet::ByteLevel, "", "\u{120}a\u{c3}\u{a4}"), " aä".as_bytes());
        assert_eq!(spelled(Alphabet::Plain, "##", "##llo"), b"llo");
        assert_eq!(spelled(Alphabet::Plain, "##", "he"), b" he");
        assert_eq!(spelled(Alphabet::Plain, "##", "##"), b" ##", "the bare prefix continues nothing");
        assert_eq!(spelled(Alphabet::Plain, "", "##a"), b" ##a");
    }
}
