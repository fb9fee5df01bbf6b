//! Reads a fastText `.bin` file through a memory map: of a file of 7 GB only the dictionary and the requested rows are read.
use std::fs::File;
use std::path::Path;

use memchr::memchr;
use memmap2::Mmap;
use rayon::prelude::*;
use rustc_hash::FxHashMap;

use super::{hashing, indices_by_word, WordVectors};
use crate::error::{Error, Result};

const MAGIC: i32 = 793_712_314;
/// Value of the setting `model` of a classifier; cbow is 1 and skipgram is 2.
const SUPERVISED: i32 = 3;
/// Bytes of a dictionary entry after the word and its zero: an 8-byte count and a 1-byte type.
const ENTRY_TAIL: usize = 9;
/// Bytes of a 32-bit floating-point number.
const F32_BYTES: usize = 4;

const DAMAGED: &str = "the file is damaged: download it again";

/// An open fastText model. Its header, dictionary and size have been checked; rows are read when they are requested.
pub struct FastText {
    map: Mmap,
    header: Header,
}

/// The settings of a model, and where its parts begin in the file.
struct Header {
    /// Number of values of a vector.
    dimension: usize,
    /// Number of words in the dictionary.
    words: usize,
    /// Number of hash buckets of n-grams.
    buckets: usize,
    /// Length of the shortest n-grams in characters.
    min_n: usize,
    /// Length of the longest n-grams in characters.
    max_n: usize,
    /// Pruned model: row of each kept bucket, counted from the first n-gram row. `None` for a model that is not pruned.
    pruned: Option<FxHashMap<u32, u32>>,
    /// Start of the dictionary in the file, in bytes.
    dictionary_start: usize,
    /// Start of the values of the input matrix in the file, in bytes.
    matrix_start: usize,
    /// End of the values of the input matrix in the file, in bytes.
    matrix_end: usize,
}

/// Reads the file from front to back. An error names the field at which the file ends.
struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    path: &'a Path,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize, field: &str) -> Result<&'a [u8]> {
        let end = self.position.saturating_add(count);
        let taken = self.bytes.get(self.position..end).ok_or_else(|| self.truncated(field, end as u64))?;
        self.position = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        let needed = self.position.saturating_add(N) as u64;
        self.take(N, field)?.first_chunk().copied().ok_or_else(|| self.truncated(field, needed))
    }

    fn byte(&mut self, field: &str) -> Result<u8> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    fn i32(&mut self, field: &str) -> Result<i32> {
        self.array(field).map(i32::from_le_bytes)
    }

    fn i64(&mut self, field: &str) -> Result<i64> {
        self.array(field).map(i64::from_le_bytes)
    }

    /// Skips a zero-terminated word and the rest of its dictionary entry.
    fn skip_entry(&mut self) -> Result<()> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let length = memchr(0, rest).ok_or_else(|| self.truncated("dictionary", self.position as u64 + 1))?;
        self.take(length + 1 + ENTRY_TAIL, "dictionary").map(|_| ())
    }

    /// Skips the 32-bit values of a matrix.
    fn skip_matrix(&mut self, rows: u64, columns: u64, field: &str) -> Result<()> {
        let bytes = rows.checked_mul(columns).and_then(|values| values.checked_mul(F32_BYTES as u64));
        let bytes =
            bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(|| self.truncated(field, u64::MAX))?;
        self.take(bytes, field).map(|_| ())
    }

    fn truncated(&self, field: &str, needed: u64) -> Error {
        Error::input(
            self.path.display().to_string(),
            format!("{} bytes, which end inside the {field}", self.bytes.len()),
            format!("at least {needed} bytes"),
            "the file is truncated: download it again",
        )
    }

    fn refused(&self, found: impl Into<String>, advice: &str) -> Error {
        let expected = "an unsupervised fastText .bin (cbow or skipgram)";
        Error::input(self.path.display().to_string(), found, expected, advice)
    }
}

impl Header {
    /// Reads and checks everything but the values of the matrices.
    fn read(bytes: &[u8], path: &Path) -> Result<Self> {
        let mut cursor = Cursor { bytes, position: 0, path };
        let magic = cursor.i32("magic number")?;
        if magic != MAGIC {
            let advice = "give a .bin written by fastText, or a .vec or word2vec text file";
            return Err(cursor.refused(format!("the magic number {magic}, which is not fastText's {MAGIC}"), advice));
        }
        let version = cursor.i32("version")?;
        if !(11..=12).contains(&version) {
            return Err(cursor.refused(format!("format version {version}"), "train or export it with fastText 0.9"));
        }
        let mut arguments = [0i32; 12];
        for value in &mut arguments {
            *value = cursor.i32("arguments")?;
        }
        cursor.take(8, "arguments")?;
        let [dimension, _, _, _, _, _, _, model, buckets, min_n, max_n, _] = arguments;
        if model == SUPERVISED {
            return Err(cursor.refused("a supervised (classifier) model", "use word vectors of the language instead"));
        }
        if !(1..SUPERVISED).contains(&model)
            || !(1..=1 << 16).contains(&dimension)
            || buckets < 0
            || min_n < 0
            || !(0..=1 << 10).contains(&max_n)
        {
            let found = format!(
                "impossible settings (model {model}, dimension {dimension}, buckets {buckets}, n-grams {min_n} to {max_n})"
            );
            return Err(cursor.refused(found, DAMAGED));
        }
        let size = cursor.i32("dictionary")?;
        let words = cursor.i32("dictionary")?;
        let labels = cursor.i32("dictionary")?;
        cursor.i64("dictionary")?;
        let pruned_count = cursor.i64("dictionary")?;
        if size < 0 || words < 0 || labels != 0 || words != size || pruned_count < -1 {
            let found = format!(
                "an impossible dictionary ({size} entries, {words} words, {labels} labels, {pruned_count} pruned)"
            );
            return Err(cursor.refused(found, DAMAGED));
        }
        let dictionary_start = cursor.position;
        for _ in 0..words {
            cursor.skip_entry()?;
        }
        let mut pruned = (pruned_count >= 0).then(FxHashMap::default);
        for _ in 0..pruned_count.max(0) {
            let (bucket, row) = (cursor.i32("pruning table")?, cursor.i32("pruning table")?);
            pruned.get_or_insert_default().insert(bucket as u32, row as u32);
        }
        if cursor.byte("input matrix")? != 0 {
            return Err(cursor.refused("a quantised model (.ftz)", "use the .bin from which it was made"));
        }
        let rows = cursor.i64("input matrix")?;
        let columns = cursor.i64("input matrix")?;
        let ngram_rows = pruned.as_ref().map_or(i64::from(buckets), |kept| kept.len() as i64);
        if columns != i64::from(dimension) || rows != i64::from(words) + ngram_rows {
            let found = format!(
                "an input matrix of {rows} x {columns}, although the header says {words} words, {ngram_rows} n-gram rows and dimension {dimension}"
            );
            return Err(cursor.refused(found, DAMAGED));
        }
        let matrix_start = cursor.position;
        cursor.skip_matrix(rows as u64, columns as u64, "input matrix")?;
        let matrix_end = cursor.position;
        if cursor.byte("output matrix")? == 0 {
            let (rows, columns) = (cursor.i64("output matrix")?, cursor.i64("output matrix")?);
            cursor.skip_matrix(rows.max(0) as u64, columns.max(0) as u64, "output matrix")?;
        }
        Ok(Header {
            dimension: dimension as usize,
            words: words as usize,
            buckets: buckets as usize,
            min_n: min_n as usize,
            max_n: max_n as usize,
            pruned,
            dictionary_start,
            matrix_start,
            matrix_end,
        })
    }
}

impl FastText {
    /// Opens a model and checks its header, its dictionary and the size of the file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] for a file that cannot be read; [`Error::Input`] for a file that is not a fastText model, is truncated, or
    /// contains a supervised or quantised model.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io(path, &error))?;
        let length = file.metadata().map_err(|error| Error::io(path, &error))?.len();
        if length == 0 {
            // An empty file cannot be mapped.
            return Err(Cursor { bytes: &[], position: 0, path }.truncated("header", 8));
        }
        // SAFETY: the map is read-only and private to this value. As for every reader of a mapped file, no other process may
        // truncate the file meanwhile. The alternative is to read 7 GB in order to use some thousand rows.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| Error::io(path, &error))?;
        let header = Header::read(&map, path)?;
        #[cfg(unix)]
        {
            // The rows are read in random order. Without this advice the system reads 128 KiB around each. An error is
            // ignored: the advice changes no result.
            let length = header.matrix_end - header.matrix_start;
            let _ = map.advise_range(memmap2::Advice::Random, header.matrix_start, length);
        }
        Ok(FastText { map, header })
    }

    /// Number of values of a vector.
    pub fn dimension(&self) -> usize {
        self.header.dimension
    }

    /// Number of words in the dictionary.
    pub fn word_count(&self) -> usize {
        self.header.words
    }

    /// The word vectors as fastText computes them: the mean of the row of the word, if the dictionary has it, and the rows of its
    /// n-grams.
    ///
    /// A word without any row has no vector, nor has `None`. The result does not depend on the number of threads.
    pub fn vectors(&self, words: &[Option<String>]) -> WordVectors {
        let dimension = self.header.dimension;
        let word_rows = self.find_words(words);
        let mut values = vec![0f32; words.len() * dimension];
        let mut known = vec![false; words.len()];
        let outputs = values.par_chunks_mut(dimension).zip(known.par_iter_mut());
        outputs.zip(words).zip(word_rows).for_each(|(((vector, known), word), word_row)| {
            let Some(word) = word else { return };
            let mut rows = Vec::new();
            rows.extend(word_row);
            if word != "</s>" {
                self.push_ngram_rows(word.as_bytes(), &mut rows);
            }
            for &row in &rows {
                self.add_row(row, vector);
            }
            if !rows.is_empty() {
                let scale = 1.0 / rows.len() as f32;
                vector.iter_mut().for_each(|value| *value *= scale);
                *known = true;
            }
        });
        WordVectors { values, known, dimension }
    }

    /// Row of each word in the dictionary, by one pass over the dictionary.
    fn find_words(&self, words: &[Option<String>]) -> Vec<Option<usize>> {
        let indices = indices_by_word(words);
        let mut rows = vec![None; words.len()];
        let mut rest = self.map.get(self.header.dictionary_start..).unwrap_or_default();
        for row in 0..self.header.words {
            // `open` has checked every entry, so each word ends and its entry is complete.
            let Some((word, tail)) = memchr(0, rest).and_then(|length| rest.split_at_checked(length)) else { break };
            for &index in indices.get(word).into_iter().flatten() {
                if let Some(word_row) = rows.get_mut(index) {
                    *word_row = Some(row);
                }
            }
            rest = tail.get(1 + ENTRY_TAIL..).unwrap_or_default();
        }
        rows
    }

    /// Appends the rows of the n-grams of `<word>`. Lengths count characters. The single characters `<` and `>` are no n-grams.
    fn push_ngram_rows(&self, word: &[u8], rows: &mut Vec<usize>) {
        let Header { words, buckets, min_n, max_n, ref pruned, .. } = self.header;
        if max_n == 0 || buckets == 0 {
            return;
        }
        let marked = [b"<", word, b">"].concat();
        let is_start = |&(_, &byte): &(usize, &u8)| byte & 0xC0 != 0x80;
        let starts = marked.iter().enumerate().filter(is_start).map(|(start, _)| start);
        let starts: Vec<usize> = starts.chain([marked.len()]).collect();
        let characters = starts.len() - 1;
        for (first, &start) in starts.iter().enumerate().take(characters) {
            for size in min_n.max(1)..=max_n.min(characters - first) {
                let at_boundary = first == 0 || first + size == characters;
                if size == 1 && at_boundary {
                    continue;
                }
                let Some(ngram) = starts.get(first + size).and_then(|&end| marked.get(start..end)) else { continue };
                let bucket = hashing::fasttext(ngram) % buckets as u32;
                match pruned {
                    None => rows.push(words + bucket as usize),
                    Some(kept) => rows.extend(kept.get(&bucket).map(|&row| words + row as usize)),
                }
            }
        }
    }

    /// Adds a row of the input matrix to `vector`.
    fn add_row(&self, row: usize, vector: &mut [f32]) {
        let length = self.header.dimension * F32_BYTES;
        let start = self.header.matrix_start + row * length;
        // A damaged pruning table can name a row behind the end of the matrix; such a row adds nothing.
        let matrix = self.map.get(..self.header.matrix_end).unwrap_or_default();
        let Some(bytes) = matrix.get(start..start + length) else { return };
        for (value, bytes) in vector.iter_mut().zip(bytes.chunks_exact(F32_BYTES)) {
            *value += bytes.first_chunk().map_or(0.0, |bytes| f32::from_le_bytes(*bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A model of two words, four buckets, dimension 2, n-grams of 3 characters; rows are 1, 2, 3, ... in order.
    fn model() -> Vec<u8> {
        let mut out = Vec::new();
        let ints = |out: &mut Vec<u8>, values: &[i32]| values.iter().for_each(|v| out.extend(v.to_le_bytes()));
        ints(&mut out, &[MAGIC, 12, 2, 5, 1, 1, 5, 1, 1, 2, 4, 3, 3, 100]);
        out.extend(1e-4f64.to_le_bytes());
        ints(&mut out, &[2, 2, 0]);
        out.extend(10i64.to_le_bytes());
        out.extend((-1i64).to_le_bytes());
        for word in ["</s>", "talo"] {
            out.extend(word.as_bytes());
            out.push(0);
            out.extend(5i64.to_le_bytes());
            out.push(0);
        }
        for rows in [6i64, 2] {
            out.push(0);
            out.extend(rows.to_le_bytes());
            out.extend(2i64.to_le_bytes());
            (1..=rows as i32 * 2).for_each(|v| out.extend((v as f32).to_le_bytes()));
        }
        out
    }

    fn open(bytes: &[u8]) -> Result<FastText> {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("saltlm-{}-{}.bin", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).unwrap();
        let opened = FastText::open(&path);
        std::fs::remove_file(&path).unwrap();
        opened
    }

    #[test]
    fn a_word_is_the_mean_of_its_row_and_its_ngrams() {
        let model = open(&model()).unwrap();
        let words: Vec<_> = ["talo", "</s>", "ab", ""].iter().map(|w| Some(w.to_string())).chain([None]).collect();
        let result = model.vectors(&words);
        let grams = |grams: &[&str]| -> Vec<usize> {
            grams.iter().map(|g| 2 + (hashing::fasttext(g.as_bytes()) % 4) as usize).collect()
        };
        let mean = |rows: Vec<usize>| -> Vec<f32> {
            let sum = |column: usize| rows.iter().map(|&r| (r * 2 + column + 1) as f32).sum::<f32>();
            vec![sum(0) * (1.0 / rows.len() as f32), sum(1) * (1.0 / rows.len() as f32)]
        };
        assert_eq!(result.values[0..2], mean([vec![1], grams(&["<ta", "tal", "alo", "lo>"])].concat()));
        assert_eq!(result.values[2..4], mean(vec![0]));
        assert_eq!(result.values[4..6], mean(grams(&["<ab", "ab>"])));
        assert_eq!(result.known, [true, true, true, false, false]);
    }

    #[test]
    fn every_truncation_is_named() {
        let whole = model();
        for length in 0..whole.len() {
            let Err(error) = open(&whole[..length]) else { panic!("{length} bytes were accepted") };
            assert!(error.to_string().contains("truncated"), "{length}: {error}");
        }
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in 0usize..200, value: u8) {
            let mut bytes = model();
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(model) = open(&bytes) {
                model.vectors(&[Some("talo".into()), Some("käärme".into())]);
            }
        }
    }
}
