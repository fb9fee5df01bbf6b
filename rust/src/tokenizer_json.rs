//! Reads a `tokenizer.json` into a [`Vocabulary`]; strings are borrowed from the file where nothing is escaped.
use std::borrow::Cow;
use std::fmt;

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::Deserialize;
use serde_json::Value;

use crate::cover::Segmenter;
use crate::error::{Error, Result};
use crate::index::Lookups;
use crate::token::{byte_piece, lay_out, Alphabet, Entry, Kind, Spelling, Vocabulary, ADDED, BYTE_PIECE, SPECIAL};

/// A vocabulary's ids end below this: beyond it a file is broken rather than large.
pub const MAX_SIZE: u64 = 1 << 24;

/// A string borrowed from the file unless it holds escapes.
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

/// Tokens with ids (a map) or with scores, the place being the id (a list).
enum Tokens<'a> {
    Ids(Vec<(Text<'a>, u64)>),
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

/// One merge, written as `"left right"` or as `["left", "right"]`.
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
    /// Whether a component of this type stands anywhere in the pipeline, nested sequences included.
    fn has(&self, name: &str) -> bool {
        [&self.normalizer, &self.pre_tokenizer, &self.decoder].into_iter().flatten().any(|value| mentions(value, name))
    }

    /// Whether a component replaces or prepends the SentencePiece mark.
    fn marks_spaces(&self) -> bool {
        self.has("Metaspace")
            || [&self.normalizer, &self.pre_tokenizer, &self.decoder]
                .into_iter()
                .flatten()
                .any(|value| value.to_string().contains('\u{2581}'))
    }
}

fn mentions(value: &Value, name: &str) -> bool {
    match value {
        Value::Object(map) => {
            map.get("type").and_then(Value::as_str) == Some(name) || map.values().any(|inner| mentions(inner, name))
        }
        Value::Array(list) => list.iter().any(|inner| mentions(inner, name)),
        _ => false,
    }
}

/// Parses `data`, the content of a `tokenizer.json` called `name` in messages.
///
/// `special_ids` are special beside those that the file itself marks.
pub fn read(data: &[u8], name: &str, special_ids: &[u32]) -> Result<Vocabulary> {
    let advice = "save the tokenizer again with save_pretrained of a current transformers";
    if data.starts_with(b"version https://git-lfs") {
        return Err(Error::input(
            name,
            "a git-lfs pointer",
            "a tokenizer.json",
            "fetch the file it points to: git lfs pull",
        ));
    }
    let file: File<'_> = serde_json::from_slice(data)
        .map_err(|error| Error::input(name, format!("a broken file ({error})"), "a tokenizer.json", advice))?;
    let kind = kind_of(&file, name)?;
    let pieces: Vec<(&str, u64)> = match &file.model.vocab {
        Tokens::Ids(tokens) => tokens.iter().map(|(text, id)| (&*text.0, *id)).collect(),
        Tokens::Scores(tokens) => tokens.iter().zip(0..).map(|((text, _), id)| (&*text.0, id)).collect(),
    };
    if pieces.is_empty() {
        return Err(Error::input(name, "an empty vocabulary", "at least one token", advice));
    }
    let largest = pieces.iter().map(|p| p.1).chain(file.added_tokens.iter().map(|a| a.id)).max().unwrap_or(0);
    if largest >= MAX_SIZE {
        return Err(Error::input(name, format!("token id {largest}"), format!("ids below {MAX_SIZE}"), advice));
    }
    let falls_back = file.model.byte_fallback == Some(true) || file.has("ByteFallback");
    let has_byte_pieces = falls_back && matches!(kind, Kind::SentencePieceBpe | Kind::SentencePieceUnigram);
    let mut special = vec![false; largest as usize + 1];
    for &id in special_ids {
        if let Some(flag) = special.get_mut(id as usize) {
            *flag = true;
        }
    }
    for added in file.added_tokens.iter().filter(|added| added.special) {
        special[added.id as usize] = true;
    }
    let mut entries = Vec::with_capacity(pieces.len() + file.added_tokens.len());
    for &(text, id) in &pieces {
        let flags = match () {
            () if special[id as usize] => SPECIAL,
            () if has_byte_pieces && byte_piece(text.as_bytes()).is_some() => BYTE_PIECE,
            () => 0,
        };
        entries.push(Entry { id: id as usize, spelling: text, flags });
    }
    let contents: FxHashMap<u64, &str> = file.added_tokens.iter().map(|added| (added.id, &*added.content.0)).collect();
    let repeated: FxHashSet<u64> =
        pieces.iter().filter(|&(text, id)| contents.get(id) == Some(text)).map(|piece| piece.1).collect();
    // Added tokens that repeat a piece of the model keep the model's spelling rules.
    for added in file.added_tokens.iter().filter(|added| !repeated.contains(&added.id)) {
        let flags = if special[added.id as usize] { SPECIAL } else { ADDED };
        entries.push(Entry { id: added.id as usize, spelling: &added.content.0, flags });
    }
    let how = spelling_of(&file, kind);
    let (canonical, spelling, flags) = lay_out(&entries, pieces.len(), |entry, out| {
        match byte_piece(entry.spelling.as_bytes()).filter(|_| entry.flags & BYTE_PIECE != 0) {
            _ if entry.flags & SPECIAL != 0 => out.extend_from_slice(entry.spelling.as_bytes()),
            Some(byte) => out.push(byte),
            None if entry.flags & ADDED != 0 => how.push_added(entry.spelling, out),
            None => how.push(entry.spelling, out),
        }
    })
    .map_err(|[one, other]| {
        let found = format!("{:?} and {:?} with one id, {}", pieces[one].0, pieces[other].0, pieces[one].1);
        Error::input(name, found, "one token for each id", advice)
    })?;
    let segmenter = segmenter(&file, &pieces, flags.len());
    Ok(Vocabulary { kind, canonical, spelling, flags, segmenter, lookups: Lookups::default() })
}

/// The kind, from the model's type and the pipeline's components.
fn kind_of(file: &File<'_>, name: &str) -> Result<Kind> {
    let model = &file.model;
    let inferred = match (&model.vocab, &model.merges) {
        (Tokens::Scores(_), _) => "Unigram",
        (_, Some(_)) => "BPE",
        _ => "WordPiece",
    };
    if model.end_of_word_suffix.as_deref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(Error::input(
            name,
            "a BPE that marks the end of words",
            "a tokenizer that marks word starts or continuations",
            "choose a PLM with a byte-level, SentencePiece or WordPiece tokenizer",
        ));
    }
    let prefixed = model.continuing_subword_prefix.as_deref().is_some_and(|prefix| !prefix.is_empty());
    if prefixed && matches!(model.name.as_deref().unwrap_or(inferred), "BPE" | "Unigram") {
        return Err(Error::input(
            name,
            "a BPE that marks continuations",
            "a BPE over bytes or over U+2581",
            "choose a PLM with a byte-level, SentencePiece or WordPiece tokenizer",
        ));
    }
    match model.name.as_deref().unwrap_or(inferred) {
        "BPE" if file.has("ByteLevel") => Ok(Kind::ByteLevelBpe),
        "BPE" if model.byte_fallback == Some(true) || file.marks_spaces() => Ok(Kind::SentencePieceBpe),
        "BPE" => Err(Error::input(
            name,
            "a BPE with neither a ByteLevel nor a Metaspace component",
            "one of them, which says how bytes and word starts are spelled",
            "save the tokenizer with its pre-tokenizer and decoder",
        )),
        "Unigram" if file.has("ByteLevel") && matches!(model.vocab, Tokens::Scores(_)) => Ok(Kind::ByteLevelUnigram),
        "Unigram" if matches!(model.vocab, Tokens::Scores(_)) => Ok(Kind::SentencePieceUnigram),
        "WordPiece" | "WordLevel" if matches!(model.vocab, Tokens::Ids(_)) => Ok(Kind::WordPiece),
        other => Err(Error::input(
            name,
            format!("a model of type {other:?}"),
            "BPE, Unigram, WordPiece or WordLevel",
            "choose another tokenizer",
        )),
    }
}

/// How the pieces are spelled. A WordPiece model may stand behind a pipeline that marks spaces itself.
fn spelling_of(file: &File<'_>, kind: Kind) -> Spelling {
    let alphabet = match kind {
        _ if file.has("ByteLevel") => Alphabet::ByteLevel,
        Kind::WordPiece if !file.marks_spaces() => Alphabet::Plain,
        _ => Alphabet::Mark,
    };
    let continuation = match (kind, file.model.name.as_deref()) {
        (Kind::WordPiece, Some("WordPiece") | None) => {
            file.model.continuing_subword_prefix.clone().unwrap_or_else(|| "##".into())
        }
        _ => String::new(),
    };
    Spelling { alphabet, continuation, starts_words: alphabet == Alphabet::Plain }
}

/// What the model's own segmentation needs.
fn segmenter(file: &File<'_>, pieces: &[(&str, u64)], size: usize) -> Segmenter {
    match (&file.model.vocab, &file.model.merges) {
        (Tokens::Scores(tokens), _) => {
            let mut scores: Vec<f64> = tokens.iter().map(|t| t.1).collect();
            let least = scores.iter().copied().filter(|s| s.is_finite()).fold(0.0, f64::min);
            scores.resize(size.max(scores.len()), least);
            Segmenter::Unigram(scores)
        }
        (Tokens::Ids(_), Some(merges)) => {
            let mut ids = FxHashMap::with_capacity_and_hasher(pieces.len(), Default::default());
            ids.extend(pieces.iter().map(|&(text, id)| (text, id as u32)));
            let triple = |joined: &mut String, Merge(left, right): &Merge<'_>| {
                joined.clear();
                joined.push_str(left);
                joined.push_str(right);
                Some([*ids.get(&**left)?, *ids.get(&**right)?, *ids.get(joined.as_str())?])
            };
            Segmenter::Bpe(merges.par_iter().map_init(String::new, triple).flatten_iter().collect())
        }
        _ => Segmenter::Longest,
    }
}
