//! Tokens as the bytes of text that they stand for.
//!
//! The canonical bytes of a token are these bytes. A token starts a word if its canonical bytes begin with a space (0x20),
//! whatever mark the tokenizer writes.
//!
//! A BPE with an end-of-word suffix (`</w>` in GPT-1, CLIP and HerBERT) marks the last piece of each word instead of the first
//! one. A piece with the suffix can be a whole word, and its canonical bytes begin with a space; a piece without it is part of
//! a longer word, and they do not. This is the reading of `##`: a piece that cannot be a word has no space before it.

/// Flag of a token that starts a word: its canonical bytes begin with a space.
pub const WORD_START: u8 = 1;
/// Flag of a special token: it stands for a role (such as the end of a text), not for text.
pub const SPECIAL: u8 = 2;
/// Flag of a byte-fallback piece such as `<0x0A>`.
pub const BYTE_PIECE: u8 = 4;
/// Flag of an unused id: no token has it.
pub const HOLE: u8 = 8;
/// Flag of an added token that is not special: its content is plain text.
pub const ADDED: u8 = 16;

/// Marks the absence of an id or of a merge rank in the lookup tables; no vocabulary is that large.
pub(crate) const NONE: u32 = u32::MAX;

/// Every id is below this limit (2^24). A file with a larger id is taken for damaged.
pub const MAX_VOCABULARY_SIZE: u64 = 1 << 24;

/// Family of a tokenizer: it decides how a token spells bytes and word starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizerKind {
    /// BPE; each of 256 fixed characters spells one byte.
    ByteLevelBpe,
    /// Unigram; each of the same 256 characters spells one byte.
    ByteLevelUnigram,
    /// Unigram; U+2581 spells a space.
    SentencePieceUnigram,
    /// BPE; U+2581 spells a space; often with byte-fallback pieces.
    SentencePieceBpe,
    /// BPE over the characters of a word; a suffix such as `</w>` marks the piece that ends a word.
    SuffixBpe,
    /// WordPiece or WordLevel; a prefix such as `##` marks a piece that continues a word.
    WordPiece,
    /// tiktoken: byte strings with ranks.
    Tiktoken,
}

impl TokenizerKind {
    /// The name that Python sees.
    pub fn name(self) -> &'static str {
        match self {
            TokenizerKind::ByteLevelBpe => "byte_level_bpe",
            TokenizerKind::ByteLevelUnigram => "byte_level_unigram",
            TokenizerKind::SentencePieceUnigram => "sentencepiece_unigram",
            TokenizerKind::SentencePieceBpe => "sentencepiece_bpe",
            TokenizerKind::SuffixBpe => "suffix_bpe",
            TokenizerKind::WordPiece => "wordpiece",
            TokenizerKind::Tiktoken => "tiktoken",
        }
    }

    /// Whether the smallest unit of the model is a byte; otherwise it is a character.
    pub fn is_byte_based(self) -> bool {
        matches!(self, TokenizerKind::ByteLevelBpe | TokenizerKind::ByteLevelUnigram | TokenizerKind::Tiktoken)
    }
}

/// Byte strings in one buffer: string `i` is `bytes[offsets[i]..offsets[i + 1]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ByteStrings {
    /// All strings, joined.
    pub bytes: Vec<u8>,
    /// Start of each string in `bytes`, then the end of the last: one number more than there are strings.
    pub offsets: Vec<usize>,
}

impl ByteStrings {
    /// No strings yet, with memory reserved for `strings` strings of `bytes` bytes in total.
    pub fn with_capacity(strings: usize, bytes: usize) -> Self {
        let mut offsets = Vec::with_capacity(strings + 1);
        offsets.push(0);
        ByteStrings { bytes: Vec::with_capacity(bytes), offsets }
    }

    /// Ends the current string: it consists of the bytes appended to `bytes` since the last call.
    pub fn finish_string(&mut self) {
        self.offsets.push(self.bytes.len());
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Whether there are no strings.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// String number `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`ByteStrings::len`].
    pub fn get(&self, index: usize) -> &[u8] {
        &self.bytes[self.offsets[index]..self.offsets[index + 1]]
    }
}

/// The segmentation algorithm of a tokenizer, with its parameters.
#[derive(Debug, Default)]
pub enum Segmenter {
    /// Byte-pair encoding. Merges in order of rank, each as ids: left, right, result.
    Bpe(Vec<[u32; 3]>),
    /// Byte-pair encoding without a list of merges (tiktoken): two neighbours merge if their joined bytes are a token, and
    /// the id of that token is the rank of the merge.
    Ranks,
    /// Unigram language model. Natural logarithm of the probability of each id.
    Unigram(Vec<f64>),
    /// WordPiece: the longest matching piece, from left to right.
    #[default]
    LongestMatch,
}

/// A vocabulary of `N` ids, and the segmentation algorithm of its tokenizer.
#[derive(Debug)]
pub struct Vocabulary {
    /// Family of the tokenizer.
    pub kind: TokenizerKind,
    /// Canonical bytes of each id, `N` strings; empty for an unused id.
    pub canonical: ByteStrings,
    /// Spelling of each id in the tokenizer's file, `N` strings; distinguishes tokens of equal canonical bytes.
    pub spelling: ByteStrings,
    /// Flags of each id, `N` sums of [`WORD_START`], [`SPECIAL`], [`BYTE_PIECE`], [`HOLE`] and [`ADDED`].
    pub flags: Vec<u8>,
    /// Segmentation algorithm.
    pub segmenter: Segmenter,
    /// Whether the pieces mark the ends of words (`</w>`). The leading space of a text then goes to its last piece.
    pub marks_word_ends: bool,
}

impl Vocabulary {
    /// Number of ids `N`: the largest id + 1, unused ids included.
    pub fn size(&self) -> usize {
        self.flags.len()
    }

    /// Whether `id` stands for text: it is neither special nor unused.
    pub fn is_text(&self, id: usize) -> bool {
        self.flags[id] & (SPECIAL | HOLE) == 0
    }

    /// Whether the segmentation algorithm can produce `id`: a text token that is neither a byte-fallback piece nor added.
    pub(crate) fn is_model_piece(&self, id: usize) -> bool {
        self.flags[id] & (SPECIAL | HOLE | BYTE_PIECE | ADDED) == 0
    }

    /// The word under which a file of static word vectors would list token `id`: its text without surrounding spaces.
    ///
    /// `None` for special tokens, byte-fallback pieces, unused ids, white space and bytes that are not valid UTF-8.
    pub fn word(&self, id: usize) -> Option<&str> {
        if self.flags[id] & (SPECIAL | HOLE | BYTE_PIECE) != 0 {
            return None;
        }
        let text = std::str::from_utf8(self.canonical.get(id)).ok()?.trim();
        (!text.is_empty()).then_some(text)
    }
}

/// A token as a reader finds it in a file.
pub struct TokenEntry<'a, S: ?Sized> {
    /// Its id.
    pub id: usize,
    /// Its spelling in the file, text or bytes.
    pub spelling: &'a S,
    /// Its flags except [`WORD_START`] and [`HOLE`], which follow from the other entries and the canonical bytes.
    pub flags: u8,
}

/// Tokens in order of their ids; the fields are those of [`Vocabulary`].
pub struct TokenTable {
    /// Canonical bytes of each id.
    pub canonical: ByteStrings,
    /// Spelling of each id.
    pub spelling: ByteStrings,
    /// Flags of each id.
    pub flags: Vec<u8>,
}

/// Two tokens of the model have the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DuplicateId {
    /// Index of the earlier entry.
    pub first: usize,
    /// Index of the later entry.
    pub second: usize,
}

impl TokenTable {
    /// Sorts `entries` by id. `push_canonical(entry, out)` appends the canonical bytes of an entry to `out`.
    ///
    /// The first `model_count` entries are the tokens of the model. The later ones are added tokens; an added token replaces a
    /// token of the model that has the same id. Ids without an entry are flagged [`HOLE`].
    ///
    /// # Errors
    ///
    /// [`DuplicateId`] if two tokens of the model have the same id.
    pub fn from_entries<S: AsRef<[u8]> + ?Sized>(
        entries: &[TokenEntry<'_, S>],
        model_count: usize,
        push_canonical: impl Fn(&TokenEntry<'_, S>, &mut Vec<u8>),
    ) -> std::result::Result<Self, DuplicateId> {
        const UNUSED: usize = usize::MAX;
        let size = entries.iter().map(|entry| entry.id + 1).max().unwrap_or(0);
        let mut entry_of_id = vec![UNUSED; size];
        for (index, entry) in entries.iter().enumerate() {
            let previous = std::mem::replace(&mut entry_of_id[entry.id], index);
            if index < model_count && previous != UNUSED {
                return Err(DuplicateId { first: previous, second: index });
            }
        }
        let total: usize = entries.iter().map(|entry| entry.spelling.as_ref().len()).sum();
        let mut canonical = ByteStrings::with_capacity(size, total);
        let mut spelling = ByteStrings::with_capacity(size, total);
        let mut flags = Vec::with_capacity(size);
        for index in entry_of_id {
            let mut flag = HOLE;
            if let Some(entry) = entries.get(index) {
                let start = canonical.bytes.len();
                push_canonical(entry, &mut canonical.bytes);
                spelling.bytes.extend_from_slice(entry.spelling.as_ref());
                flag = entry.flags;
                if flag & SPECIAL == 0 && canonical.bytes.get(start) == Some(&b' ') {
                    flag |= WORD_START;
                }
            }
            canonical.finish_string();
            spelling.finish_string();
            flags.push(flag);
        }
        Ok(TokenTable { canonical, spelling, flags })
    }
}

/// The byte that a byte-fallback piece `<0xNN>` stands for; `None` for any other spelling.
pub fn byte_piece(spelling: &[u8]) -> Option<u8> {
    match spelling {
        [b'<', b'0', b'x', high, low, b'>'] => {
            let digit = |c: &u8| (*c as char).to_digit(16);
            Some((digit(high)? * 16 + digit(low)?) as u8)
        }
        _ => None,
    }
}

/// The byte that a character of the byte-level alphabet spells; `None` for a character outside the alphabet.
///
/// A printable character of Latin-1 spells its own code. The other 68 bytes are spelled by U+0100 to U+0143, in byte order.
pub fn byte_of_char(c: char) -> Option<u8> {
    let code = c as u32;
    match code {
        33..=126 | 161..=172 | 174..=255 => Some(code as u8),
        0x100..=0x143 => {
            let rank = (code - 0x100) as u8;
            // Ranks 0 to 32 are the bytes 0 to 32, ranks 33 to 66 the bytes 127 to 160, rank 67 is the byte 173.
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
    /// Each character stands for itself.
    Plain,
    /// Each character stands for one byte, see [`byte_of_char`].
    ByteLevel,
    /// U+2581 stands for a space, any other character for itself.
    Metaspace,
}

/// The rules by which a tokenizer spells its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spelling {
    /// What the characters stand for.
    pub alphabet: Alphabet,
    /// Prefix of a piece that continues a word; empty if the tokenizer has none.
    pub continuation: String,
    /// Suffix of a piece that ends a word; empty if the tokenizer has none.
    pub word_end: String,
    /// Whether a piece without the continuation prefix starts a word, although its spelling has no mark for that.
    pub starts_words: bool,
}

impl Spelling {
    /// Appends the canonical bytes of a token of the model to `out`.
    pub fn push_piece<'a>(&self, spelling: &'a str, out: &mut Vec<u8>) {
        // The prefix alone continues no word: it is a word. The suffix alone ends none.
        let without = |mark: &str, rest: Option<&'a str>| rest.filter(|rest| !mark.is_empty() && !rest.is_empty());
        let continued = without(&self.continuation, spelling.strip_prefix(self.continuation.as_str()));
        let ended = without(&self.word_end, spelling.strip_suffix(self.word_end.as_str()));
        if ended.is_some() || (continued.is_none() && self.starts_words) {
            out.push(b' ');
        }
        let rest = continued.or(ended).unwrap_or(spelling);
        match self.alphabet {
            Alphabet::Plain => out.extend_from_slice(rest.as_bytes()),
            Alphabet::ByteLevel => push_byte_level(rest, out),
            Alphabet::Metaspace => push_sentencepiece(rest, out),
        }
    }

    /// Appends the canonical bytes of an added token to `out`.
    ///
    /// The tokenizer searches the text for the content of an added token, so the byte-level spelling is not decoded. The
    /// other rules are those of [`Spelling::push_piece`].
    pub fn push_added(&self, content: &str, out: &mut Vec<u8>) {
        match self.alphabet {
            Alphabet::ByteLevel => out.extend_from_slice(content.as_bytes()),
            _ if content.starts_with(' ') => out.extend_from_slice(content.as_bytes()),
            _ => self.push_piece(content, out),
        }
    }
}

/// Appends the bytes of a byte-level spelling; a character outside the alphabet keeps its UTF-8 bytes.
fn push_byte_level(spelling: &str, out: &mut Vec<u8>) {
    for c in spelling.chars() {
        match byte_of_char(c) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Appends the bytes of a SentencePiece spelling: every U+2581 becomes a space.
fn push_sentencepiece(spelling: &str, out: &mut Vec<u8>) {
    let mut rest = spelling;
    while let Some((before, after)) = rest.split_once('\u{2581}') {
        out.extend_from_slice(before.as_bytes());
        out.push(b' ');
        rest = after;
    }
    out.extend_from_slice(rest.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_level_alphabet_is_a_bijection() {
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
    fn every_byte_has_a_byte_piece() {
        for byte in 0..=255u8 {
            assert_eq!(byte_piece(format!("<0x{byte:02X}>").as_bytes()), Some(byte));
        }
        assert_eq!(byte_piece(b"<0x1>"), None);
        assert_eq!(byte_piece(b"<0xG0>"), None);
    }

    fn canonical_bytes(alphabet: Alphabet, continuation: &str, text: &str) -> Vec<u8> {
        let starts_words = alphabet == Alphabet::Plain;
        let mut out = Vec::new();
        let word_end = String::new();
        Spelling { alphabet, continuation: continuation.into(), word_end, starts_words }.push_piece(text, &mut out);
        out
    }

    #[test]
    fn a_piece_that_ends_a_word_can_be_a_word() {
        let canonical = |alphabet: Alphabet, text: &str| {
            let (continuation, word_end) = (String::new(), "</w>".to_owned());
            let mut out = Vec::new();
            Spelling { alphabet, continuation, word_end, starts_words: false }.push_piece(text, &mut out);
            out
        };
        assert_eq!(canonical(Alphabet::Plain, "kissa</w>"), b" kissa");
        assert_eq!(canonical(Alphabet::Plain, "kis"), b"kis");
        assert_eq!(canonical(Alphabet::ByteLevel, "\u{c3}\u{a4}</w>"), " ä".as_bytes());
        assert_eq!(canonical(Alphabet::Plain, "</w>"), b"</w>", "the suffix alone ends no word");
    }

    #[test]
    fn a_spelling_becomes_its_canonical_bytes() {
        assert_eq!(canonical_bytes(Alphabet::Metaspace, "", "\u{2581}\u{2581}a\u{2581}"), b"  a ");
        assert_eq!(canonical_bytes(Alphabet::ByteLevel, "", "\u{120}a\u{c3}\u{a4}"), " aä".as_bytes());
        assert_eq!(canonical_bytes(Alphabet::Plain, "##", "##llo"), b"llo");
        assert_eq!(canonical_bytes(Alphabet::Plain, "##", "he"), b" he");
        assert_eq!(canonical_bytes(Alphabet::Plain, "##", "##"), b" ##", "the prefix alone continues no word");
        assert_eq!(canonical_bytes(Alphabet::Plain, "", "##a"), b" ##a");
    }
}
