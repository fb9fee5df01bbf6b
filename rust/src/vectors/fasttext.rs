//! A fastText `.bin` by memory map: of a 7 GB file only the dictionary and the rows asked for are read.
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;
use rustc_hash::FxHashMap;

use super::hashing;
use super::{places, Found};
use crate::error::{Error, Result};

const MAGIC: i32 = 793_712_314;
const SUPERVISED: i32 = 3;

/// An opened model: header and dictionary are checked, rows are read when asked for.
pub struct FastText {
    map: Mmap,
    path: PathBuf,
    dimension: usize,
    words: usize,
    buckets: usize,
    shortest: usize,
    longest: usize,
    /// Where kept n-gram rows of a pruned model lie; `None` for a model that was never pruned.
    pruned: Option<FxHashMap<u32, u32>>,
    dictionary: usize,
    matrix: usize,
}

/// A cursor over the file that names the field at which the file ends.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize, field: &str) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| truncated(self.path, self.bytes.len(), field, (self.at + count) as u64))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn i32(&mut self, field: &str) -> Result<i32> {
        self.take(4, field).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn i64(&mut self, field: &str) -> Result<i64> {
        self.take(8, field).map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
    }

    /// A zero-terminated word.
    fn word(&mut self) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&b| b == 0);
        let length = length.ok_or_else(|| truncated(self.path, self.bytes.len(), "dictionary", self.at as u64 + 1))?;
        self.at += length + 1;
        Ok(&rest[..length])
    }
}

fn truncated(path: &Path, size: usize, field: &str, needed: u64) -> Error {
    Error::input(
        path.display().to_string(),
        format!("{size} bytes, which end inside the {field}"),
        format!("at least {needed} bytes"),
        "the file is truncated: fetch it again",
    )
}

fn refused(path: &Path, found: impl Into<String>, advice: &str) -> Error {
    Error::input(path.display().to_string(), found, "an unsupervised fastText .bin (cbow or skipgram)", advice)
}

impl FastText {
    /// Opens a model and checks its header, dictionary and size.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io(path, &error))?;
        let length = file.metadata().map_err(|error| Error::io(path, &error))?.len();
        if length == 0 {
            return Err(truncated(path, 0, "header", 8));
        }
        // SAFETY: the map is read-only and private to this value; like every reader of a mapped file we rely on nobody
        // truncating it meanwhile. The alternative, reading 7 GB to use some thousand rows, is what this reader is for.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| Error::io(path, &error))?;
        let mut model = FastText {
            map,
            path: path.to_owned(),
            dimension: 0,
            words: 0,
            buckets: 0,
            shortest: 0,
            longest: 0,
            pruned: None,
            dictionary: 0,
            matrix: 0,
        };
        model.read_header()?;
        Ok(model)
    }

    fn read_header(&mut self) -> Result<()> {
        let path = self.path.clone();
        let mut cursor = Cursor { bytes: &self.map, at: 0, path: &path };
        let magic = cursor.i32("magic number")?;
        if magic != MAGIC {
            let advice = "give a .bin written by fastText, or a .vec or word2vec text file";
            return Err(refused(&path, format!("the magic number {magic}, which is not fastText's {MAGIC}"), advice));
        }
        let version = cursor.i32("version")?;
        if !(11..=12).contains(&version) {
            return Err(refused(&path, format!("format version {version}"), "train or export it with fastText 0.9"));
        }
        let mut arguments = [0i32; 12];
        for value in &mut arguments {
            *value = cursor.i32("arguments")?;
        }
        cursor.take(8, "arguments")?;
        let [dimension, _, _, _, _, _, _, model, buckets, shortest, longest, _] = arguments;
        if model == SUPERVISED {
            return Err(refused(&path, "a supervised (classifier) model", "use word vectors of the language instead"));
        }
        if !(1..SUPERVISED).contains(&model)
            || !(1..=1 << 16).contains(&dimension)
            || buckets < 0
            || shortest < 0
            || !(0..=1 << 10).contains(&longest)
        {
            let found = format!(
                "impossible settings (model {model}, dimension {dimension}, buckets {buckets}, n-grams {shortest} to {longest})"
            );
            return Err(refused(&path, found, "the file is damaged: fetch it again"));
        }
        let size = cursor.i32("dictionary")?;
        let words = cursor.i32("dictionary")?;
        let labels = cursor.i32("dictionary")?;
        cursor.i64("dictionary")?;
        let prune = cursor.i64("dictionary")?;
        if size < 0 || words < 0 || labels != 0 || words != size || prune < -1 {
            let found =
                format!("an impossible dictionary ({size} entries, {words} words, {labels} labels, {prune} pruned)");
            return Err(refused(&path, found, "the file is damaged: fetch it again"));
        }
        let dictionary = cursor.at;
        for _ in 0..words {
            cursor.word()?;
            cursor.take(9, "dictionary")?;
        }
        let mut pruned = (prune >= 0).then(FxHashMap::default);
        for _ in 0..prune.max(0) {
            let (from, to) = (cursor.i32("pruning table")?, cursor.i32("pruning table")?);
            pruned.get_or_insert_default().insert(from as u32, to as u32);
        }
        if cursor.take(1, "input matrix")?[0] != 0 {
            return Err(refused(&path, "a quantised model (.ftz)", "use the .bin it was made from"));
        }
        let rows = cursor.i64("input matrix")?;
        let columns = cursor.i64("input matrix")?;
        let grams = pruned.as_ref().map_or(i64::from(buckets), |kept| kept.len() as i64);
        if columns != i64::from(dimension) || rows != i64::from(words) + grams {
            let found = format!(
                "an input matrix of {rows} x {columns} where {words} words, {grams} n-gram rows and dimension {dimension} were announced"
            );
            return Err(refused(&path, found, "the file is damaged: fetch it again"));
        }
        let matrix = cursor.at;
        skip_matrix(&mut cursor, rows as u64, columns as u64, "input matrix")?;
        #[cfg(unix)]
        {
            // Rows are wanted here and there; without this the system reads 128 KiB around each. It is only advice.
            let _ = self.map.advise_range(memmap2::Advice::Random, matrix, cursor.at - matrix);
        }
        if cursor.take(1, "output matrix")?[0] == 0 {
            let (rows, columns) = (cursor.i64("output matrix")?, cursor.i64("output matrix")?);
            skip_matrix(&mut cursor, rows.max(0) as u64, columns.max(0) as u64, "output matrix")?;
        }
        self.dimension = dimension as usize;
        self.words = words as usize;
        self.buckets = buckets as usize;
        self.shortest = shortest as usize;
        self.longest = longest as usize;
        self.pruned = pruned;
        self.dictionary = dictionary;
        self.matrix = matrix;
        Ok(())
    }

    /// Width of a vector.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Number of words in the dictionary.
    pub fn word_count(&self) -> usize {
        self.words
    }

    /// fastText's own word vectors: the mean of the word's row (when it is in the dictionary) and its n-grams' rows.
    ///
    /// A word outside the dictionary with no n-gram has none. The result does not depend on the number of threads.
    pub fn vectors(&self, words: &[Option<String>]) -> Found {
        let known_words = self.find(words);
        let mut values = vec![0f32; words.len() * self.dimension];
        let mut known = vec![false; words.len()];
        values.par_chunks_mut(self.dimension).zip(known.par_iter_mut()).enumerate().for_each(
            |(place, (row, known))| {
                let Some(word) = &words[place] else { return };
                let mut rows = Vec::new();
                rows.extend(known_words[place].map(|id| id as usize));
                if word != "</s>" {
                    self.push_ngrams(word.as_bytes(), &mut rows);
                }
                for &index in &rows {
                    self.add_row(index, row);
                }
                if !rows.is_empty() {
                    let scale = 1.0 / rows.len() as f32;
                    row.iter_mut().for_each(|value| *value *= scale);
                    *known = true;
                }
            },
        );
        Found { values, known, dimension: self.dimension }
    }

    /// Dictionary ids of the wanted words, by one pass over the dictionary.
    fn find(&self, words: &[Option<String>]) -> Vec<Option<u32>> {
        let wanted = places(words);
        let mut found = vec![None; words.len()];
        let mut at = self.dictionary;
        for id in 0..self.words as u32 {
            // The dictionary was walked once when the file was opened, so every word ends.
            let length = self.map[at..].iter().position(|&b| b == 0).unwrap_or(0);
            if let Some(places) = wanted.get(&self.map[at..at + length]) {
                for &place in places {
                    found[place as usize] = Some(id);
                }
            }
            at += length + 1 + 9;
        }
        found
    }

    /// Rows of the n-grams of `<word>`: lengths in characters, single boundary marks left out.
    fn push_ngrams(&self, word: &[u8], rows: &mut Vec<usize>) {
        if self.longest == 0 || self.buckets == 0 {
            return;
        }
        let marked = [b"<", word, b">"].concat();
        let starts: Vec<usize> =
            (0..marked.len()).filter(|&i| marked[i] & 0xC0 != 0x80).chain([marked.len()]).collect();
        let characters = starts.len() - 1;
        for first in 0..characters {
            for size in self.shortest.max(1)..=self.longest.min(characters - first) {
                let boundary = first == 0 || first + size == characters;
                if size == 1 && boundary {
                    continue;
                }
                let gram = &marked[starts[first]..starts[first + size]];
                let bucket = hashing::fasttext(gram) % self.buckets as u32;
                match &self.pruned {
                    None => rows.push(self.words + bucket as usize),
                    Some(kept) => rows.extend(kept.get(&bucket).map(|&row| self.words + row as usize)),
                }
            }
        }
    }

    fn add_row(&self, index: usize, row: &mut [f32]) {
        let start = self.matrix + index * self.dimension * 4;
        // A pruned model could name a row beyond the matrix; such a row adds nothing.
        let Some(bytes) = self.map.get(start..start + self.dimension * 4) else { return };
        for (value, four) in row.iter_mut().zip(bytes.chunks_exact(4)) {
            *value += f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
        }
    }
}

fn skip_matrix(cursor: &mut Cursor<'_>, rows: u64, columns: u64, field: &str) -> Result<()> {
    let bytes = rows.checked_mul(columns).and_then(|cells| cells.checked_mul(4));
    let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok()).filter(|bytes| *bytes < usize::MAX / 2);
    match bytes {
        Some(bytes) => cursor.take(bytes, field).map(|_| ()),
        None => Err(truncated(cursor.path, cursor.bytes.len(), field, u64::MAX)),
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
        let found = model.vectors(&words);
        let grams = |grams: &[&str]| -> Vec<usize> {
            grams.iter().map(|g| 2 + (hashing::fasttext(g.as_bytes()) % 4) as usize).collect()
        };
        let mean = |rows: Vec<usize>| -> Vec<f32> {
            let sum = |column: usize| rows.iter().map(|&r| (r * 2 + column + 1) as f32).sum::<f32>();
            vec![sum(0) * (1.0 / rows.len() as f32), sum(1) * (1.0 / rows.len() as f32)]
        };
        assert_eq!(found.values[0..2], mean([vec![1], grams(&["<ta", "tal", "alo", "lo>"])].concat()));
        assert_eq!(found.values[2..4], mean(vec![0]));
        assert_eq!(found.values[4..6], mean(grams(&["<ab", "ab>"])));
        assert_eq!(found.known, [true, true, true, false, false]);
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
