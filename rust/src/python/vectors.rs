//! The vector readers for Python.
use std::path::PathBuf;

use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::runtime::{in_pool, to_py};
use crate::vectors::spacy::{self, Floret};
use crate::vectors::{fasttext, file, text, WordVectors};

type VectorArrays<'py> = (Bound<'py, PyArray2<f32>>, Bound<'py, PyArray1<bool>>);

fn to_arrays(py: Python<'_>, vectors: WordVectors) -> PyResult<VectorArrays<'_>> {
    let count = vectors.known.len();
    let values = vectors.values.into_pyarray(py).reshape([count, vectors.dimension])?;
    Ok((values, vectors.known.into_pyarray(py)))
}

/// A fastText .bin file, memory-mapped.
#[pyclass(frozen, module = "saltlm._rust")]
struct FastText(fasttext::FastText);

#[pymethods]
impl FastText {
    /// Opens and checks a model. Raises ValueError for an invalid file and OSError for one that cannot be read.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        Ok(FastText(py.detach(|| fasttext::FastText::open(&path)).map_err(to_py)?))
    }

    /// Number of values of a vector.
    #[getter]
    fn dimension(&self) -> usize {
        self.0.dimension()
    }

    /// Number of words in the dictionary.
    #[getter]
    fn word_count(&self) -> usize {
        self.0.word_count()
    }

    /// Vectors [n, dimension] of `words` [n] and whether each word has one [n]; None has none.
    ///
    /// The interpreter lock is released meanwhile.
    fn vectors<'py>(&self, py: Python<'py>, words: Vec<Option<String>>) -> PyResult<VectorArrays<'py>> {
        to_arrays(py, in_pool(py, || self.0.vectors(&words))?)
    }
}

/// Format of a file of vectors: "fasttext", "word2vec" (binary) or "text"; also in a gzip or zip file.
///
/// Raises ValueError for an invalid file and OSError for one that cannot be read.
#[pyfunction]
fn check_vectors(py: Python<'_>, path: PathBuf) -> PyResult<&'static str> {
    Ok(py.detach(|| file::check(&path)).map_err(to_py)?.name())
}

/// Vectors [n, P] of `words` [n] from a file of any format that `check_vectors` accepts, and whether each word has one [n].
///
/// Raises ValueError for an invalid file and OSError for one that cannot be read.
#[pyfunction]
fn read_vectors(py: Python<'_>, path: PathBuf, words: Vec<Option<String>>) -> PyResult<VectorArrays<'_>> {
    to_arrays(py, in_pool(py, || file::read(&path, &words))?.map_err(to_py)?)
}

/// The words of a word list (text or word2vec's binary format; also in a gzip or zip file) in order, each once.
///
/// Raises ValueError for an invalid file and OSError for one that cannot be read.
#[pyfunction]
fn listed_words(py: Python<'_>, path: PathBuf) -> PyResult<Vec<String>> {
    py.detach(|| text::list_words(&path)).map_err(to_py)
}

/// Vectors [n, P] of `words` [n] from a floret table [rows, P] and whether each word has one [n]; None has none.
///
/// The interpreter lock is released meanwhile.
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
) -> PyResult<VectorArrays<'py>> {
    let rows = table.shape().first().copied().unwrap_or_default();
    let floret =
        Floret { min_n: minn, max_n: maxn, hash_count, hash_seed, rows: rows as u64, begin_mark: bow, end_mark: eow };
    let table = table.as_slice()?;
    to_arrays(py, in_pool(py, || spacy::floret_vectors(&words, &floret, table))?)
}

/// Row of each word in a spaCy word table or -1 [n]; `table` is the content of the file key2row.
///
/// Raises ValueError for invalid content; the message calls the file `name`.
#[pyfunction]
fn table_rows<'py>(
    py: Python<'py>,
    table: &[u8],
    words: Vec<Option<String>>,
    name: &str,
) -> PyResult<Bound<'py, PyArray1<i64>>> {
    let rows = py.detach(|| spacy::table_rows(table, &words, name)).map_err(to_py)?;
    Ok(rows.into_pyarray(py))
}

/// Adds the vector readers to the native module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<FastText>()?;
    module.add_function(wrap_pyfunction!(check_vectors, module)?)?;
    module.add_function(wrap_pyfunction!(read_vectors, module)?)?;
    module.add_function(wrap_pyfunction!(listed_words, module)?)?;
    module.add_function(wrap_pyfunction!(floret_vectors, module)?)?;
    module.add_function(wrap_pyfunction!(table_rows, module)?)?;
    Ok(())
}
