//! Reads a fastText `.bin` file through a memory map: of a file of 7 GB only the dictionary and the requested rows are read.
use std::io::{BufRead, ErrorKind, Read};
use std::path::Path;

use memchr::memchr;
use memmap2::Mmap;
use rayon::prelude::*;
use rustc_hash::FxHashMap;

use super::input::{check_size, open_regular, read_error, MAX_LINE_BYTES, MAX_VALUES, MAX_WIDTH};
use super::{hashing, indices_by_word, WordVectors};
use crate::error::{Error, Result};

/// First four bytes of a model, as a little-endian number.
pub const MAGIC: i32 = 793_712_314;
/// Value of the setting `model` of a classifier; cbow is 1 and skipgram is 2.
const SUPERVISED: i32 = 3;
/// Longest n-grams in characters. fastText's default is 6.
const MAX_NGRAM: i32 = 64;
/// Largest number of words. The largest published models have some millions.
const MAX_WORDS: i32 = 1 << 26;
/// Bytes of a dictionary entry after the word and its zero: an 8-byte count and a 1-byte type.
const ENTRY_TAIL: usize = 9;
/// Bytes of a 32-bit floating-point number.
const F32_BYTES: usize = 4;

const DAMAGED: &str = "the file is damaged: download it again";

/// An open fastText model. Its header, dictionary and size have been checked; rows are read when they are requested.
pub struct FastText {
    map: Mmap,
    settings: Settings,
    /// Start of the dictionary in the file, in bytes.
    dictionary_start: usize,
    /// Start of the values of the input matrix in the file, in bytes.
    matrix_start: usize,
    /// End of the values of the input matrix in the file, in bytes.
    matrix_end: usize,
}

/// The settings of a model.
struct Settings {
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
    /// Number of entries of the pruning table; `None` for a model that is not pruned.
    pruned_entries: Option<u64>,
    /// Pruned model: row of each kept bucket, counted from the first n-gram row. `None` for a model that is not pruned.
    pruned: Option<FxHashMap<u32, u32>>,
}

/// Reads a model from front to back. An error names the field at which the content ends.
trait Fields {
    fn path(&self) -> &Path;
    /// The next bytes of a fixed number.
    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]>;

    fn byte(&mut self, field: &str) -> Result<u8> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    fn i32(&mut self, field: &str) -> Result<i32> {
        self.array(field).map(i32::from_le_bytes)
    }

    fn i64(&mut self, field: &str) -> Result<i64> {
        self.array(field).map(i64::from_le_bytes)
    }

    fn refused(&self, found: impl Into<String>, advice: &str) -> Error {
        let expected = "an unsupervised fastText .bin (cbow or skipgram)";
        Error::input(self.path().display().to_string(), found, expected, advice)
    }
}

fn truncated(path: &Path, bytes: u64, field: &str, needed: u64) -> Error {
    Error::input(
        path.display().to_string(),
        format!("{bytes} bytes, which end inside the {field}"),
        format!("at least {needed} bytes"),
        "the file is truncated: download it again",
    )
}

/// Reads a mapped file.
struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    path: &'a Path,
}

impl Fields for Cursor<'_> {
    fn path(&self) -> &Path {
        self.path
    }

    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        let needed = self.position.saturating_add(N) as u64;
        self.take(N, field)?.first_chunk().copied().ok_or_else(|| self.truncated(field, needed))
    }
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize, field: &str) -> Result<&'a [u8]> {
        let end = self.position.saturating_add(count);
        let taken = self.bytes.get(self.position..end).ok_or_else(|| self.truncated(field, end as u64))?;
        self.position = end;
        Ok(taken)
    }

    /// Skips a zero-terminated word and the rest of its dictionary entry.
    fn skip_entry(&mut self) -> Result<()> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let length = memchr(0, rest).ok_or_else(|| self.truncated("dictionary", self.position as u64 + 1))?;
        self.take(length + 1 + ENTRY_TAIL, "dictionary").map(|_| ())
    }

    /// Skips the 32-bit values of a matrix.
    fn skip_matrix(&mut self, rows: u64, columns: u64, field: &str) -> Result<()> {
        let bytes = matrix_bytes(rows, columns).and_then(|bytes| usize::try_from(bytes).ok());
        let bytes = bytes.ok_or_else(|| self.truncated(field, u64::MAX))?;
        self.take(bytes, field).map(|_| ())
    }

    fn truncated(&self, field: &str, needed: u64) -> Error {
        truncated(self.path, self.bytes.len() as u64, field, needed)
    }
}

fn matrix_bytes(rows: u64, columns: u64) -> Option<u64> {
    rows.checked_mul(columns).and_then(|values| values.checked_mul(F32_BYTES as u64))
}

/// Reads a model that is unpacked while it is read.
struct Stream<'a> {
    reader: Box<dyn BufRead + Send>,
    position: u64,
    path: &'a Path,
}

impl Fields for Stream<'_> {
    fn path(&self) -> &Path {
        self.path
    }

    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, field)?;
        Ok(bytes)
    }
}

impl Stream<'_> {
    fn fill(&mut self, bytes: &mut [u8], field: &str) -> Result<()> {
        let needed = self.position + bytes.len() as u64;
        self.reader.read_exact(bytes).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => truncated(self.path, self.position, field, needed),
            _ => read_error(self.path.display().to_string(), &error),
        })?;
        self.position = needed;
        Ok(())
    }

    /// Reads a word of the dictionary into `word`, and skips the rest of its entry.
    fn entry(&mut self, word: &mut Vec<u8>) -> Result<()> {
        word.clear();
        let read = self.reader.by_ref().take(MAX_LINE_BYTES as u64).read_until(0, word);
        self.position += read.map_err(|error| read_error(self.path.display().to_string(), &error))? as u64;
        if word.pop() != Some(0) {
            return Err(truncated(self.path, self.position, "dictionary", self.position + 1));
        }
        self.array::<ENTRY_TAIL>("dictionary").map(|_| ())
    }

    /// Reads to the end of the content.
    fn skip_rest(&mut self) -> Result<()> {
        let copied = std::io::copy(&mut self.reader, &mut std::io::sink());
        copied.map(|_| ()).map_err(|error| read_error(self.path.display().to_string(), &error))
    }

    fn skip(&mut self, count: u64, field: &str) -> Result<()> {
        let needed = self.position.saturating_add(count);
        let copied = std::io::copy(&mut self.reader.by_ref().take(count), &mut std::io::sink());
        self.position += copied.map_err(|error| read_error(self.path.display().to_string(), &error))?;
        if self.position < needed {
            return Err(truncated(self.path, self.position, field, needed));
        }
        Ok(())
    }
}

impl Settings {
    /// Reads and checks the part of a model in front of the dictionary.
    fn read(fields: &mut impl Fields) -> Result<Self> {
        let magic = fields.i32("magic number")?;
        if magic != MAGIC {
            let advice = "give a .bin written by fastText, or a .vec or word2vec text file";
            return Err(fields.refused(format!("the magic number {magic}, which is not fastText's {MAGIC}"), advice));
        }
        let version = fields.i32("version")?;
        if !(11..=12).contains(&version) {
            return Err(fields.refused(format!("format version {version}"), "train or export it with fastText 0.9"));
        }
        let mut arguments = [0i32; 12];
        for value in &mut arguments {
            *value = fields.i32("arguments")?;
        }
        fields.array::<8>("arguments")?;
        let [dimension, _, _, _, _, _, _, model, buckets, min_n, max_n, _] = arguments;
        if model == SUPERVISED {
            return Err(fields.refused("a supervised (classifier) model", "use word vectors of the language instead"));
        }
        if !(1..SUPERVISED).contains(&model)
            || !(1..=MAX_WIDTH as i32).contains(&dimension)
            || buckets < 0
            || min_n < 0
            || !(0..=MAX_NGRAM).contains(&max_n)
        {
            let found = format!(
                "impossible settings (model {model}, dimension {dimension}, buckets {buckets}, n-grams {min_n} to {max_n}; \
                 at most dimension {MAX_WIDTH} and n-grams of {MAX_NGRAM} characters are read)"
            );
            return Err(fields.refused(found, DAMAGED));
        }
        let size = fields.i32("dictionary")?;
        let words = fields.i32("dictionary")?;
        let labels = fields.i32("dictionary")?;
        fields.i64("dictionary")?;
        let pruned_count = fields.i64("dictionary")?;
        if !(0..=MAX_WORDS).contains(&words) || labels != 0 || words != size || pruned_count < -1 {
            let found = format!(
                "an impossible dictionary ({size} entries, {words} words, {labels} labels, {pruned_count} pruned; at most \
                 {MAX_WORDS} words are read)"
            );
            return Err(fields.refused(found, DAMAGED));
        }
        Ok(Settings {
            dimension: dimension as usize,
            words: words as usize,
            buckets: buckets as usize,
            min_n: min_n as usize,
            max_n: max_n as usize,
            pruned_entries: u64::try_from(pruned_count).ok(),
            pruned: None,
        })
    }

    /// Reads what is between the dictionary and the values of the input matrix; returns the number of rows of the matrix.
    fn read_matrix_header(&mut self, fields: &mut impl Fields) -> Result<u64> {
        self.pruned = self.pruned_entries.map(|_| FxHashMap::default());
        for _ in 0..self.pruned_entries.unwrap_or_default() {
            let (bucket, row) = (fields.i32("pruning table")?, fields.i32("pruning table")?);
            self.pruned.get_or_insert_default().insert(bucket as u32, row as u32);
        }
        if fields.byte("input matrix")? != 0 {
            return Err(fields.refused("a quantised model (.ftz)", "use the .bin from which it was made"));
        }
        let rows = fields.i64("input matrix")?;
        let columns = fields.i64("input matrix")?;
        let ngram_rows = self.pruned.as_ref().map_or(self.buckets, FxHashMap::len);
        if columns != self.dimension as i64 || rows != (self.words + ngram_rows) as i64 {
            let found = format!(
                "an input matrix of {rows} x {columns}, although the header says {} words, {ngram_rows} n-gram rows and dimension {}",
                self.words, self.dimension
            );
            return Err(fields.refused(found, DAMAGED));
        }
        Ok(rows as u64)
    }

    /// Appends the rows of the n-grams of `<word>`. Lengths count characters. The single characters `<` and `>` are no n-grams.
    fn push_ngram_rows(&self, word: &[u8], rows: &mut Vec<usize>) {
        let Settings { words, buckets, min_n, max_n, ref pruned, .. } = *self;
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

    /// Rows of a word: its own, if the dictionary has it, then those of its n-grams.
    fn rows_of(&self, word: &str, word_row: Option<usize>) -> Vec<usize> {
        let mut rows = Vec::from_iter(word_row);
        if word != "</s>" {
            self.push_ngram_rows(word.as_bytes(), &mut rows);
        }
        rows
    }

    /// Vectors of words, each the mean of its rows, summed in their order in 32-bit floating point.
    ///
    /// `word_rows` holds the row of each word in the dictionary; `row_bytes` gives the bytes of a row of the input matrix, or
    /// `None` for a row behind its end, which a damaged pruning table can name and which adds nothing.
    fn vectors<'a>(
        &self,
        words: &[Option<String>],
        word_rows: Vec<Option<usize>>,
        row_bytes: impl Fn(usize) -> Option<&'a [u8]> + Sync,
    ) -> WordVectors {
        let dimension = self.dimension;
        let mut values = vec![0f32; words.len() * dimension];
        let mut known = vec![false; words.len()];
        let outputs = values.par_chunks_mut(dimension).zip(known.par_iter_mut());
        outputs.zip(words).zip(word_rows).for_each(|(((vector, known), word), word_row)| {
            let Some(word) = word else { return };
            let rows = self.rows_of(word, word_row);
            for bytes in rows.iter().filter_map(|&row| row_bytes(row)) {
                for (value, bytes) in vector.iter_mut().zip(bytes.chunks_exact(F32_BYTES)) {
                    *value += bytes.first_chunk().map_or(0.0, |bytes| f32::from_le_bytes(*bytes));
                }
            }
            if !rows.is_empty() {
                let scale = 1.0 / rows.len() as f32;
                vector.iter_mut().for_each(|value| *value *= scale);
                *known = true;
            }
        });
        WordVectors { values, known, dimension }
    }
}

/// Checks the settings of a packed model, without its dictionary and matrices.
///
/// # Errors
///
/// As [`read_packed`].
pub fn check_packed(reader: Box<dyn BufRead + Send>, path: &Path) -> Result<()> {
    Settings::read(&mut Stream { reader, position: 0, path }).map(|_| ())
}

/// Reads the vectors of `words` from a packed model in one pass. The rows that the words need are kept in memory.
///
/// # Errors
///
/// [`Error::Input`] for a file that is not a fastText model, is truncated, contains a supervised or quantised model, or has
/// more rows for these words than memory is allowed for.
pub fn read_packed(reader: Box<dyn BufRead + Send>, path: &Path, words: &[Option<String>]) -> Result<WordVectors> {
    let mut stream = Stream { reader, position: 0, path };
    let mut settings = Settings::read(&mut stream)?;
    check_size(path, words.len(), settings.dimension)?;
    let indices = indices_by_word(words);
    let mut word_rows = vec![None; words.len()];
    let mut word = Vec::new();
    for row in 0..settings.words {
        stream.entry(&mut word)?;
        for &index in indices.get(word.as_slice()).into_iter().flatten() {
            if let Some(word_row) = word_rows.get_mut(index) {
                *word_row = Some(row);
            }
        }
    }
    let matrix_rows = settings.read_matrix_header(&mut stream)?;
    let mut needed: Vec<usize> = words
        .par_iter()
        .zip(&word_rows)
        .flat_map_iter(|(word, &word_row)| {
            word.as_deref().map_or_else(Vec::new, |word| settings.rows_of(word, word_row))
        })
        .filter(|&row| (row as u64) < matrix_rows)
        .collect();
    needed.par_sort_unstable();
    needed.dedup();
    let row_length = settings.dimension * F32_BYTES;
    if needed.len().saturating_mul(settings.dimension) > MAX_VALUES {
        let found = format!("{} rows of width {} for these words", needed.len(), settings.dimension);
        let advice = "unpack the file (gunzip or unzip) and name the .bin: its rows are then read where they lie";
        return Err(Error::input(path.display().to_string(), found, format!("at most {MAX_VALUES} values"), advice));
    }
    let mut rows = vec![0u8; needed.len() * row_length];
    let mut next = 0;
    for (&row, bytes) in needed.iter().zip(rows.chunks_exact_mut(row_length)) {
        stream.skip((row - next) as u64 * row_length as u64, "input matrix")?;
        stream.fill(bytes, "input matrix")?;
        next = row + 1;
    }
    stream.skip((matrix_rows - next as u64) * row_length as u64, "input matrix")?;
    if stream.byte("output matrix")? == 0 {
        let (rows, columns) = (stream.i64("output matrix")?, stream.i64("output matrix")?);
        let bytes = matrix_bytes(rows.max(0) as u64, columns.max(0) as u64).unwrap_or(u64::MAX);
        stream.skip(bytes, "output matrix")?;
    }
    // The rest is read, too, because the checksum of the content follows it.
    stream.skip_rest()?;
    let row_bytes = |row: usize| {
        let index = needed.binary_search(&row).ok()?;
        rows.get(index * row_length..(index + 1) * row_length)
    };
    Ok(settings.vectors(words, word_rows, row_bytes))
}

impl FastText {
    /// Opens a model and checks its header, its dictionary and the size of the file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] for a file that cannot be read; [`Error::Input`] for a file that is not a fastText model, is truncated, or
    /// contains a supervised or quantised model.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path)?;
        let length = file.metadata().map_err(|error| Error::io(path, &error))?.len();
        if length == 0 {
            // An empty file cannot be mapped.
            return Err(truncated(path, 0, "header", 8));
        }
        // SAFETY: the map is read-only and private to this value. As for every reader of a mapped file, no other process may
        // truncate the file meanwhile. The alternative is to read 7 GB in order to use some thousand rows.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| Error::io(path, &error))?;
        let mut cursor = Cursor { bytes: &map, position: 0, path };
        let mut settings = Settings::read(&mut cursor)?;
        let dictionary_start = cursor.position;
        for _ in 0..settings.words {
            cursor.skip_entry()?;
        }
        let rows = settings.read_matrix_header(&mut cursor)?;
        let matrix_start = cursor.position;
        cursor.skip_matrix(rows, settings.dimension as u64, "input matrix")?;
        let matrix_end = cursor.position;
        if cursor.byte("output matrix")? == 0 {
            let (rows, columns) = (cursor.i64("output matrix")?, cursor.i64("output matrix")?);
            cursor.skip_matrix(rows.max(0) as u64, columns.max(0) as u64, "output matrix")?;
        }
        #[cfg(unix)]
        {
            // The rows are read in random order. Without this advice the system reads 128 KiB around each. An error is
            // ignored: the advice changes no result.
            let _ = map.advise_range(memmap2::Advice::Random, matrix_start, matrix_end - matrix_start);
        }
        Ok(FastText { map, settings, dictionary_start, matrix_start, matrix_end })
    }

    /// Number of values of a vector.
    pub fn dimension(&self) -> usize {
        self.settings.dimension
    }

    /// Number of words in the dictionary.
    pub fn word_count(&self) -> usize {
        self.settings.words
    }

    /// The word vectors as fastText computes them: the mean of the row of the word, if the dictionary has it, and the rows of its
    /// n-grams.
    ///
    /// A word without any row has no vector, nor has `None`. The result does not depend on the number of threads.
    pub fn vectors(&self, words: &[Option<String>]) -> WordVectors {
        let length = self.settings.dimension * F32_BYTES;
        let matrix = self.map.get(self.matrix_start..self.matrix_end).unwrap_or_default();
        let row_bytes = |row: usize| matrix.get(row * length..(row + 1) * length);
        self.settings.vectors(words, self.find_words(words), row_bytes)
    }

    /// Row of each word in the dictionary, by one pass over the dictionary.
    fn find_words(&self, words: &[Option<String>]) -> Vec<Option<usize>> {
        let indices = indices_by_word(words);
        let mut rows = vec![None; words.len()];
        let mut rest = self.map.get(self.dictionary_start..).unwrap_or_default();
        for row in 0..self.settings.words {
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
