//! Python face of the vector readers.
use std::path::PathBuf;

use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::{to_py, work};
use crate::vectors::spacy::{self, Floret};
use crate::vectors::{fasttext, text, Found};

type Rows<'py> = (Bound<'py, PyArray2<f32>>, Bound<'py, PyArray1<bool>>);

fn rows(py: Python<'_>, found: Found) -> PyResult<Rows<'_>> {
    let count = found.known.len();
    let values = found.values.into_pyarray(py).reshape([count, found.dimension])?;
    Ok((values, found.known.into_pyarray(py)))
}

/// A fastText .bin, memory-mapped.
#[pyclass(frozen, module = "saltlm._rust")]
struct FastText(fasttext::FastText);

#[pymethods]
impl FastText {
    /// Opens and checks a model; ValueError for a file that is none, OSError for one that cannot be read.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        Ok(FastText(py.detach(|| fasttext::FastText::open(&path)).map_err(to_py)?))
    }

    /// Width of a vector.
    #[getter]
    fn dimension(&self) -> usize {
        self.0.dimension()
    }

    /// Words in the dictionary.
    #[getter]
    fn word_count(&self) -> usize {
        self.0.word_count()
    }

    /// Vectors [n, P] and whether each word has one; None has none. The interpreter lock is released.
    fn vectors<'py>(&self, py: Python<'py>, words: Vec<Option<String>>) -> PyResult<Rows<'py>> {
        let found = work(py, || self.0.vectors(&words))?;
        rows(py, found)
    }
}

/// Vectors [n, P] of the wanted words from a text file (.vec, word2vec, GloVe; also gzipped) and whether each was found.
#[pyfunction]
fn read_text_vectors(py: Python<'_>, path: PathBuf, words: Vec<Option<String>>) -> PyResult<Rows<'_>> {
    let found = py.detach(|| text::read(&path, &words)).map_err(to_py)?;
    rows(py, found)
}

/// Vectors [n, P] of words from a floret table [rows, P] and whether each has one; None has none. The lock is released.
#[pyfunction]
#[pyo3(signature = (words, table, *, minn, maxn, hash_count, hash_seed, bow, eow))]
#[allow(clippy::too_many_arguments)]
fn floret_vectors<'py>(
    py: Python<'py>,
    words: Vec<Option<String>>,
    table: PyReadonlyArray2<'py, f32>,
    minn: usize,
    maxn: usize,
    hash_count: usize,
    hash_seed: u32,
    bow: String,
    eow: String,
) -> PyResult<Rows<'py>> {
    let count = table.shape()[0] as u64;
    let floret = Floret {
        shortest: minn,
        longest: maxn,
        hashes: hash_count,
        seed: hash_seed,
        rows: count,
        begin: bow,
        end: eow,
    };
    let table = table.as_slice()?;
    let found = work(py, || spacy::floret_vectors(&words, &floret, table))?;
    rows(py, found)
}

/// Row of each word in a spaCy word table, -1 for none; `table` is the content of key2row.
#[pyfunction]
fn table_rows<'py>(
    py: Python<'py>,
    table: &[u8],
    words: Vec<Option<String>>,
    name: &str,
) -> PyResult<Bound<'py, PyArray1<i64>>> {
    let found = py.detach(|| spacy::table_rows(table, &words, name)).map_err(to_py)?;
    Ok(found.into_pyarray(py))
}

/// Adds the vector readers to the native module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<FastText>()?;
    module.add_function(wrap_pyfunction!(read_text_vectors, module)?)?;
    module.add_function(wrap_pyfunction!(floret_vectors, module)?)?;
    module.add_function(wrap_pyfunction!(table_rows, module)?)?;
    Ok(())
}
