//! Reads a `tokenizer.json` file into a [`Vocabulary`]. A string without escapes is borrowed from the file, not copied.
use std::borrow::Cow;
use std::fmt;

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::Deserialize;
use serde_json::Value;

use crate::error::{refuse_git_lfs_pointer, Error, Result};
use crate::token::{
    byte_piece, Alphabet, DuplicateId, Segmenter, Spelling, TokenEntry, TokenTable, TokenizerKind, Vocabulary, ADDED,
    BYTE_PIECE, MAX_VOCABULARY_SIZE, SPECIAL,
};

const SAVE_AGAIN: &str = "save the tokenizer again with save_pretrained of a current transformers";
const SUPPORTED: &str = "choose a PLM with a byte-level, SentencePiece or WordPiece tokenizer";

/// A string, borrowed from the file unless it contains escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> std::result::Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// The `vocab` field of a model.
enum Tokens<'a> {
    /// A JSON map from tokens to ids.
    Ids(Vec<(Text<'a>, u64)>),
    /// A JSON list of tokens with their log-probabilities; the position in the list is the id.
    Scores(Vec<(Text<'a>, f64)>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Tokens<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct TokensVisitor;
        impl<'de> Visitor<'de> for TokensVisitor {
            type Value = Tokens<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tokens to ids or a list of [token, score]")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut tokens = Vec::with_capacity(1 << 16);
                while let Some(entry) = map.next_entry()? {
                    tokens.push(entry);
                }
                Ok(Tokens::Ids(tokens))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Self::Value, A::Error> {
                let mut tokens = Vec::with_capacity(1 << 16);
                while let Some(entry) = list.next_element()? {
                    tokens.push(entry);
                }
                Ok(Tokens::Scores(tokens))
            }
        }
        deserializer.deserialize_any(TokensVisitor)
    }
}

/// A merge of two tokens, in the file `"left right"` or `["left", "right"]`.
struct Merge<'a>(Cow<'a, str>, Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct MergeVisitor;
        impl<'de> Visitor<'de> for MergeVisitor {
            type Value = Merge<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge as \"left right\" or [left, right]")
            }
            fn visit_borrowed_str<E: serde::de::Error>(self, t: &'de str) -> std::result::Result<Self::Value, E> {
                let (left, right) = t.split_once(' ').ok_or_else(|| E::custom("a merge without a space"))?;
                Ok(Merge(Cow::Borrowed(left), Cow::Borrowed(right)))
            }
            fn visit_str<E: serde::de::Error>(self, t: &str) -> std::result::Result<Self::Value, E> {
                let (left, right) = t.split_once(' ').ok_or_else(|| E::custom("a merge without a space"))?;
                Ok(Merge(Cow::Owned(left.to_owned()), Cow::Owned(right.to_owned())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> std::result::Result<Self::Value, A::Error> {
                let missing = || serde::de::Error::custom("a merge of fewer than two tokens");
                let left: Text<'de> = pair.next_element()?.ok_or_else(missing)?;
                let right: Text<'de> = pair.next_element()?.ok_or_else(missing)?;
                Ok(Merge(left.0, right.0))
            }
        }
        deserializer.deserialize_any(MergeVisitor)
    }
}

#[derive(Deserialize)]
struct Model<'a> {
    #[serde(rename = "type")]
    name: Option<String>,
    #[serde(borrow)]
    vocab: Tokens<'a>,
    #[serde(borrow)]
    merges: Option<Vec<Merge<'a>>>,
    byte_fallback: Option<bool>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

#[derive(Deserialize)]
struct Added<'a> {
    id: u64,
    #[serde(borrow)]
    content: Text<'a>,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    model: Model<'a>,
    #[serde(borrow, default)]
    added_tokens: Vec<Added<'a>>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    decoder: Option<Value>,
}

impl File<'_> {
    /// The components beside the model that the file has.
    fn components(&self) -> impl Iterator<Item = &Value> {
        [&self.normalizer, &self.pre_tokenizer, &self.decoder].into_iter().flatten()
    }

    /// Whether there is a component of type `name`, also inside a sequence of components.
    fn has_component(&self, name: &str) -> bool {
        self.components().any(|component| contains_type(component, name))
    }

    /// The suffix of a piece of the model that ends a word; empty if the model has none.
    fn word_end(&self) -> &str {
        self.model.end_of_word_suffix.as_deref().unwrap_or_default()
    }

    /// Whether a component writes U+2581 for a space.
    fn uses_metaspace(&self) -> bool {
        self.has_component("Metaspace") || self.components().any(|value| value.to_string().contains('\u{2581}'))
    }
}

/// Whether `value` or a value inside it is an object of type `name`.
fn contains_type(value: &Value, name: &str) -> bool {
    match value {
        Value::Object(map) => {
            map.get("type").and_then(Value::as_str) == Some(name)
                || map.values().any(|inner| contains_type(inner, name))
        }
        Value::Array(list) => list.iter().any(|inner| contains_type(inner, name)),
        _ => false,
    }
}

/// Parses `data`, the content of a `tokenizer.json` file; error messages call the file `name`.
///
/// `special_ids` are ids of special tokens in addition to those that the file declares special.
///
/// # Errors
///
/// [`Error::Input`] for a file that is not a `tokenizer.json`, an empty vocabulary, two tokens of one id, an id of
/// [`MAX_VOCABULARY_SIZE`] or more, an unsupported model, and a Git LFS pointer.
pub fn read(data: &[u8], name: &str, special_ids: &[u32]) -> Result<Vocabulary> {
    refuse_git_lfs_pointer(data, name, "a tokenizer.json")?;
    let file: File<'_> = serde_json::from_slice(data)
        .map_err(|error| Error::input(name, format!("a broken file ({error})"), "a tokenizer.json", SAVE_AGAIN))?;
    let kind = tokenizer_kind(&file, name)?;
    let pieces: Vec<(&str, u64)> = match &file.model.vocab {
        Tokens::Ids(tokens) => tokens.iter().map(|(text, id)| (&*text.0, *id)).collect(),
        Tokens::Scores(tokens) => tokens.iter().zip(0..).map(|((text, _), id)| (&*text.0, id)).collect(),
    };
    if pieces.is_empty() {
        return Err(Error::input(name, "an empty vocabulary", "at least one token", SAVE_AGAIN));
    }
    let added_ids = file.added_tokens.iter().map(|added| added.id);
    let largest = pieces.iter().map(|piece| piece.1).chain(added_ids).max().unwrap_or(0);
    if largest >= MAX_VOCABULARY_SIZE {
        let (found, expected) = (format!("token id {largest}"), format!("ids below {MAX_VOCABULARY_SIZE}"));
        return Err(Error::input(name, found, expected, SAVE_AGAIN));
    }
    let mut is_special = vec![false; largest as usize + 1];
    let declared = file.added_tokens.iter().filter(|added| added.special).map(|added| added.id as usize);
    for id in special_ids.iter().map(|&id| id as usize).chain(declared) {
        if let Some(flag) = is_special.get_mut(id) {
            *flag = true;
        }
    }
    let entries = token_entries(&file, kind, &pieces, &is_special);
    let rules = spelling_rules(&file, kind);
    let table = TokenTable::from_entries(&entries, pieces.len(), |entry, out| {
        let byte = if entry.flags & BYTE_PIECE != 0 { byte_piece(entry.spelling.as_bytes()) } else { None };
        match byte {
            _ if entry.flags & SPECIAL != 0 => out.extend_from_slice(entry.spelling.as_bytes()),
            Some(byte) => out.push(byte),
            None if entry.flags & ADDED != 0 => rules.push_added(entry.spelling, out),
            None => rules.push_piece(entry.spelling, out),
        }
    });
    let TokenTable { canonical, spelling, flags } = table.map_err(|DuplicateId { first, second }| {
        let (first, id) = pieces[first];
        let found = format!("{first:?} and {:?} with one id, {id}", pieces[second].0);
        Error::input(name, found, "one token for each id", SAVE_AGAIN)
    })?;
    let segmenter = segmenter(&file, &pieces, flags.len());
    let marks_word_ends = !rules.word_end.is_empty();
    Ok(Vocabulary { kind, canonical, spelling, flags, segmenter, marks_word_ends })
}

/// The tokens of the model, then the added tokens.
///
/// An added token that repeats a token of the model (same id, same text) is left out: it keeps the spelling of the model.
fn token_entries<'a>(
    file: &'a File<'_>,
    kind: TokenizerKind,
    pieces: &[(&'a str, u64)],
    is_special: &[bool],
) -> Vec<TokenEntry<'a, str>> {
    let has_fallback = file.model.byte_fallback == Some(true) || file.has_component("ByteFallback");
    let has_byte_pieces =
        has_fallback && matches!(kind, TokenizerKind::SentencePieceBpe | TokenizerKind::SentencePieceUnigram);
    let special_or = |id: u64, other: u8| if is_special[id as usize] { SPECIAL } else { other };
    let mut entries = Vec::with_capacity(pieces.len() + file.added_tokens.len());
    for &(text, id) in pieces {
        let byte_flag = if has_byte_pieces && byte_piece(text.as_bytes()).is_some() { BYTE_PIECE } else { 0 };
        entries.push(TokenEntry { id: id as usize, spelling: text, flags: special_or(id, byte_flag) });
    }
    let contents: FxHashMap<u64, &str> = file.added_tokens.iter().map(|added| (added.id, &*added.content.0)).collect();
    let repeated: FxHashSet<u64> =
        pieces.iter().filter(|&(text, id)| contents.get(id) == Some(text)).map(|piece| piece.1).collect();
    for added in file.added_tokens.iter().filter(|added| !repeated.contains(&added.id)) {
        let flags = special_or(added.id, ADDED);
        entries.push(TokenEntry { id: added.id as usize, spelling: &added.content.0, flags });
    }
    entries
}

/// The family of the tokenizer, from the type of the model and the components beside it.
fn tokenizer_kind(file: &File<'_>, name: &str) -> Result<TokenizerKind> {
    let model = &file.model;
    let is_set = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    let model_type = model.name.as_deref().unwrap_or(match (&model.vocab, &model.merges) {
        (Tokens::Scores(_), _) => "Unigram",
        (_, Some(_)) => "BPE",
        _ => "WordPiece",
    });
    if is_set(&model.continuing_subword_prefix) && matches!(model_type, "BPE" | "Unigram") {
        let expected = "a BPE over bytes or over U+2581";
        return Err(Error::input(name, "a BPE that marks continuations", expected, SUPPORTED));
    }
    if !file.word_end().is_empty() && (model_type != "BPE" || file.uses_metaspace()) {
        let expected = "marks of word starts, of continuations or of word ends";
        return Err(Error::input(name, "a tokenizer that marks word ends and word starts", expected, SUPPORTED));
    }
    match (model_type, &model.vocab) {
        ("BPE", _) if file.has_component("ByteLevel") => Ok(TokenizerKind::ByteLevelBpe),
        ("BPE", _) if !file.word_end().is_empty() => Ok(TokenizerKind::SuffixBpe),
        ("BPE", _) if model.byte_fallback == Some(true) || file.uses_metaspace() => Ok(TokenizerKind::SentencePieceBpe),
        ("BPE", _) => Err(Error::input(
            name,
            "a BPE with neither a ByteLevel nor a Metaspace component, nor an end_of_word_suffix",
            "one of them, which says how bytes and word starts are spelled",
            "save the tokenizer with its pre-tokenizer and decoder",
        )),
        ("Unigram", Tokens::Scores(_)) if file.has_component("ByteLevel") => Ok(TokenizerKind::ByteLevelUnigram),
        ("Unigram", Tokens::Scores(_)) => Ok(TokenizerKind::SentencePieceUnigram),
        ("WordPiece" | "WordLevel", Tokens::Ids(_)) => Ok(TokenizerKind::WordPiece),
        (other, _) => Err(Error::input(
            name,
            format!("a model of type {other:?}"),
            "BPE, Unigram, WordPiece or WordLevel",
            "choose another tokenizer",
        )),
    }
}

/// The rules by which the tokens are spelled. The components of a WordPiece tokenizer may write U+2581 or byte-level text.
fn spelling_rules(file: &File<'_>, kind: TokenizerKind) -> Spelling {
    let alphabet = match kind {
        _ if file.has_component("ByteLevel") => Alphabet::ByteLevel,
        TokenizerKind::SuffixBpe => Alphabet::Plain,
        TokenizerKind::WordPiece if !file.uses_metaspace() => Alphabet::Plain,
        _ => Alphabet::Metaspace,
    };
    let continuation = match (kind, file.model.name.as_deref()) {
        (TokenizerKind::WordPiece, Some("WordPiece") | None) => {
            file.model.continuing_subword_prefix.clone().unwrap_or_else(|| "##".into())
        }
        _ => String::new(),
    };
    let word_end = file.word_end().to_owned();
    let starts_words = alphabet == Alphabet::Plain && word_end.is_empty();
    Spelling { alphabet, continuation, word_end, starts_words }
}

/// The segmentation algorithm of the model; `size` is the number of ids.
fn segmenter(file: &File<'_>, pieces: &[(&str, u64)], size: usize) -> Segmenter {
    match (&file.model.vocab, &file.model.merges) {
        (Tokens::Scores(tokens), _) => {
            let mut scores: Vec<f64> = tokens.iter().map(|token| token.1).collect();
            let smallest = scores.iter().copied().filter(|score| score.is_finite()).fold(0.0, f64::min);
            scores.resize(size.max(scores.len()), smallest);
            Segmenter::Unigram(scores)
        }
        (Tokens::Ids(_), Some(merges)) => {
            let mut ids = FxHashMap::with_capacity_and_hasher(pieces.len(), Default::default());
            ids.extend(pieces.iter().map(|&(text, id)| (text, id as u32)));
            // `joined` is a buffer that each thread reuses. A merge of tokens that the vocabulary lacks is left out.
            let merge_ids = |joined: &mut String, Merge(left, right): &Merge<'_>| {
                joined.clear();
                joined.push_str(left);
                joined.push_str(right);
                Some([*ids.get(&**left)?, *ids.get(&**right)?, *ids.get(joined.as_str())?])
            };
            Segmenter::Bpe(merges.par_iter().map_init(String::new, merge_ids).flatten_iter().collect())
        }
        _ => Segmenter::LongestMatch,
    }
}
