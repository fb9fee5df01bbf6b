//! The Python module. It only converts arguments and results; the algorithms know no Python.
use std::sync::Arc;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use self::runtime::{in_pool, to_py};
use crate::align::{self, Overlap};
use crate::error::{Error, Result};
use crate::index::IndexedVocabulary;
use crate::token::{self, Segmenter, ADDED, HOLE, SPECIAL};
use crate::{tiktoken, tokenizer_json};

mod runtime;
mod vectors;

/// A vocabulary by id: canonical bytes, flags and the segmentation algorithm of the tokenizer.
#[pyclass(frozen, module = "saltlm._rust")]
struct Vocabulary(Arc<IndexedVocabulary>);

impl Vocabulary {
    fn inner(&self) -> &token::Vocabulary {
        self.0.vocabulary()
    }

    fn from_read(read: Result<token::Vocabulary>) -> PyResult<Self> {
        Ok(Vocabulary(Arc::new(IndexedVocabulary::new(read.map_err(to_py)?))))
    }
}

#[pymethods]
impl Vocabulary {
    /// Reads the content of a tokenizer.json; `special_ids` are special in addition to those that the file declares special.
    ///
    /// Raises ValueError for invalid content; the message calls the file `name`.
    #[staticmethod]
    #[pyo3(signature = (data, special_ids, name = "tokenizer.json"))]
    fn from_tokenizer_json(py: Python<'_>, data: &[u8], special_ids: Vec<u32>, name: &str) -> PyResult<Self> {
        Vocabulary::from_read(in_pool(py, || tokenizer_json::read(data, name, &special_ids))?)
    }

    /// Reads the content of a tiktoken ranks file; `specials` are the special tokens as spelling and id.
    ///
    /// Raises ValueError for invalid content; the message calls the file `name`.
    #[staticmethod]
    #[pyo3(signature = (data, specials, name = "tiktoken ranks"))]
    fn from_tiktoken(py: Python<'_>, data: &[u8], specials: Vec<(String, u32)>, name: &str) -> PyResult<Self> {
        Vocabulary::from_read(in_pool(py, || tiktoken::read(data, name, &specials))?)
    }

    /// Number of ids: the largest id + 1, unused ids included.
    #[getter]
    fn size(&self) -> usize {
        self.inner().size()
    }

    /// Builds the look-up tables that an alignment needs of its source; a caller may do it while the target is being read.
    fn prepare(&self, py: Python<'_>) -> PyResult<()> {
        in_pool(py, || self.0.prepare(true))
    }

    /// Name of the tokenizer family, such as "byte_level_bpe".
    #[getter]
    fn kind(&self) -> &'static str {
        self.inner().kind.name()
    }

    /// Canonical bytes of all ids, joined [B], and the start of each with the end of the last [size + 1].
    fn token_bytes<'py>(&self, py: Python<'py>) -> (Bound<'py, PyArray1<u8>>, Bound<'py, PyArray1<i64>>) {
        let strings = &self.inner().canonical;
        let offsets: Vec<i64> = strings.offsets.iter().map(|&offset| offset as i64).collect();
        (strings.bytes.clone().into_pyarray(py), offsets.into_pyarray(py))
    }

    /// Flags of all ids [size], sums of 1 word start, 2 special, 4 byte-fallback piece, 8 unused id, 16 added.
    fn flags<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u8>> {
        self.inner().flags.clone().into_pyarray(py)
    }

    /// The word of each id under which a file of static vectors would list it, or None.
    fn words(&self) -> Vec<Option<&str>> {
        (0..self.inner().size()).map(|id| self.inner().word(id)).collect()
    }

    /// Natural logarithm of the probability of each id [size] for a Unigram model, else None.
    fn scores<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyArray1<f64>>> {
        match &self.inner().segmenter {
            Segmenter::Unigram(scores) => Some(scores.clone().into_pyarray(py)),
            _ => None,
        }
    }

    /// Special and added tokens as spelling and id, ascending by id.
    fn added(&self) -> Vec<(String, u32)> {
        let vocabulary = self.inner();
        let spelling = |id: usize| String::from_utf8_lossy(vocabulary.spelling.get(id)).into_owned();
        let flagged = vocabulary.flags.iter().enumerate().filter(|(_, &flags)| flags & (SPECIAL | ADDED) != 0);
        flagged.map(|(id, _)| (spelling(id), id as u32)).collect()
    }

    /// The smallest id with this spelling in the tokenizer's file, or None.
    fn find(&self, spelling: &str) -> Option<usize> {
        let vocabulary = self.inner();
        let mut used = vocabulary.flags.iter().enumerate().filter(|(_, &flags)| flags & HOLE == 0);
        used.find(|&(id, _)| vocabulary.spelling.get(id) == spelling.as_bytes()).map(|(id, _)| id)
    }

    fn __repr__(&self) -> String {
        format!("Vocabulary(kind={:?}, size={})", self.inner().kind.name(), self.inner().size())
    }
}

type AlignmentArrays<'py> =
    (Bound<'py, PyArray1<u8>>, Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i32>>);

type CoverArrays<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i32>>);

/// Match kind [T] and source id or -1 [T] of every target id, and the covers: offsets [T + 1] into the joined source ids.
///
/// `overlap` is "exact", "word-start" or "case"; `roles` are pairs (target id, source id) that always match. The interpreter lock
/// is released meanwhile. Raises ValueError for another `overlap`.
#[pyfunction(name = "align")]
#[pyo3(signature = (source, target, overlap, roles, covers = true))]
fn align_py<'py>(
    py: Python<'py>,
    source: &Vocabulary,
    target: &Vocabulary,
    overlap: &str,
    roles: Vec<(u32, u32)>,
    covers: bool,
) -> PyResult<AlignmentArrays<'py>> {
    let overlap = match overlap {
        "exact" => Overlap::Exact,
        "word-start" => Overlap::WordStart,
        "case" => Overlap::Case,
        other => {
            let expected = "exact, word-start or case";
            return Err(to_py(Error::input("overlap", format!("{other:?}"), expected, "choose one of these")));
        }
    };
    let alignment = in_pool(py, || align::align(&source.0, target.inner(), overlap, &roles, covers))?;
    Ok((
        alignment.match_kind.into_pyarray(py),
        alignment.source_id.into_pyarray(py),
        alignment.covers.offsets.into_pyarray(py),
        alignment.covers.ids.into_pyarray(py),
    ))
}

/// Covers of the target ids `tokens` [n], each without the source ids forbidden for it: offsets [n + 1], joined source ids.
///
/// The ids forbidden for `tokens[i]` are `forbidden[offsets[i]:offsets[i + 1]]`. Raises ValueError for an id outside its vocabulary
/// and for offsets that do not ascend from 0 to the number of forbidden ids.
#[pyfunction]
fn covers_without<'py>(
    py: Python<'py>,
    source: &Vocabulary,
    target: &Vocabulary,
    tokens: PyReadonlyArray1<'py, i64>,
    offsets: PyReadonlyArray1<'py, i64>,
    forbidden: PyReadonlyArray1<'py, i64>,
) -> PyResult<CoverArrays<'py>> {
    let tokens = checked_ids(tokens.as_slice()?, target.inner().size(), "tokens").map_err(to_py)?;
    let forbidden = checked_ids(forbidden.as_slice()?, source.inner().size(), "forbidden").map_err(to_py)?;
    let offsets = checked_offsets(offsets.as_slice()?, tokens.len(), forbidden.len()).map_err(to_py)?;
    let covers = in_pool(py, || align::covers_without(&source.0, target.inner(), &tokens, &offsets, &forbidden))?;
    Ok((covers.offsets.into_pyarray(py), covers.ids.into_pyarray(py)))
}

/// The ids, if all are in [0, size).
fn checked_ids(ids: &[i64], size: usize, what: &str) -> Result<Vec<u32>> {
    let check = |&id: &i64| match u32::try_from(id) {
        Ok(valid) if (valid as usize) < size => Ok(valid),
        _ => {
            let expected = format!("ids in [0, {size})");
            Err(Error::input(what, id.to_string(), expected, "give ids of this vocabulary"))
        }
    };
    ids.iter().map(check).collect()
}

/// The offsets, if they are `count + 1` numbers that ascend from 0 to `total`.
fn checked_offsets(offsets: &[i64], count: usize, total: usize) -> Result<Vec<usize>> {
    let valid = offsets.len() == count + 1
        && offsets.first() == Some(&0)
        && offsets.last() == Some(&(total as i64))
        && offsets.is_sorted();
    if !valid {
        let expected = format!("{} ascending from 0 to {total}", count + 1);
        return Err(Error::input(
            "offsets",
            format!("{} of them", offsets.len()),
            expected,
            "check how they are counted",
        ));
    }
    Ok(offsets.iter().map(|&offset| offset as usize).collect())
}

/// Native part of saltlm; use it through the Python package.
#[pymodule(gil_used = false)]
fn _rust(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<Vocabulary>()?;
    module.add_function(wrap_pyfunction!(align_py, module)?)?;
    module.add_function(wrap_pyfunction!(covers_without, module)?)?;
    vectors::register(module)?;
    Ok(())
}
