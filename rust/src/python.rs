//! The Python face: conversions only, no algorithm.
use std::sync::{Arc, Mutex, PoisonError};

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::align::Overlap;
use crate::cover::Segmenter;
use crate::error::Error;
use crate::{align, tiktoken, token, tokenizer_json};

mod vectors;

/// Maps the crate's error to the exception a Python caller expects.
fn to_py(error: Error) -> PyErr {
    match error {
        Error::Input { .. } => PyValueError::new_err(error.to_string()),
        Error::Io { .. } => PyOSError::new_err(error.to_string()),
    }
}

/// The worker threads of this process, and the process they belong to.
static POOL: Mutex<Option<(u32, Arc<rayon::ThreadPool>)>> = Mutex::new(None);

/// Runs `job` on the worker threads with the interpreter lock released.
///
/// rayon's own pool does not survive a fork: a child would wait for threads that it does not have. So the pool is kept with
/// its process, and a forked child starts one of its own.
fn work<T: Send>(py: Python<'_>, job: impl FnOnce() -> T + Send) -> PyResult<T> {
    py.detach(|| {
        let mut kept = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        let here = std::process::id();
        let pool = match &*kept {
            Some((process, pool)) if *process == here => Arc::clone(pool),
            _ => {
                let pool = rayon::ThreadPoolBuilder::new().build();
                let pool = Arc::new(pool.map_err(|error| PyOSError::new_err(error.to_string()))?);
                // The parent's pool must not be dropped here: that would wait for its threads too.
                std::mem::forget(kept.replace((here, Arc::clone(&pool))));
                pool
            }
        };
        drop(kept);
        Ok(pool.install(job))
    })
}

/// A vocabulary by id: canonical bytes, flags and the tokenizer's own segmentation.
#[pyclass(frozen, module = "saltlm._rust")]
struct Vocabulary(Arc<token::Vocabulary>);

#[pymethods]
impl Vocabulary {
    /// From the content of a tokenizer.json; `special_ids` are special beside those it marks. ValueError when broken.
    #[staticmethod]
    #[pyo3(signature = (data, special_ids, name = "tokenizer.json"))]
    fn from_tokenizer_json(py: Python<'_>, data: &[u8], special_ids: Vec<u32>, name: &str) -> PyResult<Self> {
        let read = work(py, || tokenizer_json::read(data, name, &special_ids))?;
        Ok(Vocabulary(Arc::new(read.map_err(to_py)?)))
    }

    /// From the content of a tiktoken ranks file. ValueError when broken.
    #[staticmethod]
    #[pyo3(signature = (data, specials, name = "tiktoken ranks"))]
    fn from_tiktoken(py: Python<'_>, data: &[u8], specials: Vec<(String, u32)>, name: &str) -> PyResult<Self> {
        let read = work(py, || tiktoken::read(data, name, &specials))?;
        Ok(Vocabulary(Arc::new(read.map_err(to_py)?)))
    }

    /// Largest id + 1, holes counted.
    #[getter]
    fn size(&self) -> usize {
        self.0.size()
    }

    /// Makes the lookups of a source, those of covers too: while the target is still read they cost nothing.
    fn prepare(&self, py: Python<'_>) -> PyResult<()> {
        work(py, || align::prepare(&self.0, true))
    }

    /// How tokens are spelled.
    #[getter]
    fn kind(&self) -> &'static str {
        self.0.kind.name()
    }

    /// Canonical bytes of all tokens, flat, and where each starts.
    fn token_bytes<'py>(&self, py: Python<'py>) -> (Bound<'py, PyArray1<u8>>, Bound<'py, PyArray1<i64>>) {
        let table = &self.0.canonical;
        let offsets: Vec<i64> = table.offsets.iter().map(|&o| o as i64).collect();
        (table.bytes.clone().into_pyarray(py), offsets.into_pyarray(py))
    }

    /// Flags of all tokens: 1 word start, 2 special, 4 byte piece, 8 hole, 16 added.
    fn flags<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u8>> {
        self.0.flags.clone().into_pyarray(py)
    }

    /// The text of each token as static vectors would list it, or None.
    fn words(&self) -> Vec<Option<&str>> {
        (0..self.0.size()).map(|id| self.0.word(id)).collect()
    }

    /// Log-probability of each id where the model is a Unigram, else None.
    fn scores<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyArray1<f64>>> {
        match &self.0.segmenter {
            Segmenter::Unigram(scores) => Some(scores.clone().into_pyarray(py)),
            _ => None,
        }
    }

    /// Special and added tokens: spelling and id, ascending ids.
    fn added(&self) -> Vec<(String, u32)> {
        let flagged = |id: &usize| self.0.flags[*id] & (token::SPECIAL | token::ADDED) != 0;
        let spelled = |id: usize| (String::from_utf8_lossy(self.0.spelling.get(id)).into_owned(), id as u32);
        (0..self.0.size()).filter(flagged).map(spelled).collect()
    }

    /// The smallest id with this native spelling, or None.
    fn find(&self, spelling: &str) -> Option<usize> {
        (0..self.0.size())
            .find(|&id| self.0.flags[id] & token::HOLE == 0 && self.0.spelling.get(id) == spelling.as_bytes())
    }

    fn __repr__(&self) -> String {
        format!("Vocabulary(kind={:?}, size={})", self.0.kind.name(), self.0.size())
    }
}

type Flat<'py> =
    (Bound<'py, PyArray1<u8>>, Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i32>>);

/// Verdict, source id and cover of every target token. The interpreter lock is released while it works.
#[pyfunction(name = "align")]
#[pyo3(signature = (source, target, overlap, roles, covers = true))]
fn align_py<'py>(
    py: Python<'py>,
    source: &Vocabulary,
    target: &Vocabulary,
    overlap: &str,
    roles: Vec<(u32, u32)>,
    covers: bool,
) -> PyResult<Flat<'py>> {
    let overlap = match overlap {
        "exact" => Overlap::Exact,
        "word-start" => Overlap::WordStart,
        "case" => Overlap::Case,
        other => {
            let error =
                Error::input("overlap", format!("{other:?}"), "exact, word-start or case", "choose one of these");
            return Err(to_py(error));
        }
    };
    let (source, target) = (&source.0, &target.0);
    let found = work(py, || align::align(source, target, overlap, &roles, covers))?;
    Ok((
        found.kind.into_pyarray(py),
        found.source_id.into_pyarray(py),
        found.cover_offsets.into_pyarray(py),
        found.cover_ids.into_pyarray(py),
    ))
}

type Covers<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i32>>);

/// Covers of target `tokens`, each by the source vocabulary without its forbidden ids, and where each starts.
///
/// Those of `tokens[i]` are `forbidden[offsets[i]:offsets[i + 1]]`. ValueError where ids or offsets do not fit.
#[pyfunction]
fn covers_without<'py>(
    py: Python<'py>,
    source: &Vocabulary,
    target: &Vocabulary,
    tokens: PyReadonlyArray1<'py, i64>,
    offsets: PyReadonlyArray1<'py, i64>,
    forbidden: PyReadonlyArray1<'py, i64>,
) -> PyResult<Covers<'py>> {
    let ids = |given: PyReadonlyArray1<'py, i64>, size: usize, what: &str| -> PyResult<Vec<u32>> {
        let outside = |&id: &i64| id < 0 || id as usize >= size;
        let given = given.as_slice()?;
        if let Some(id) = given.iter().copied().find(outside) {
            let expected = format!("ids in [0, {size})");
            return Err(to_py(Error::input(what, id.to_string(), &expected, "take ids of this vocabulary")));
        }
        Ok(given.iter().map(|&id| id as u32).collect())
    };
    let (source, target) = (&source.0, &target.0);
    let tokens = ids(tokens, target.size(), "tokens")?;
    let forbidden = ids(forbidden, source.size(), "forbidden")?;
    let offsets = offsets.as_slice()?;
    let whole = offsets.len() == tokens.len() + 1
        && offsets.first() == Some(&0)
        && offsets.last() == Some(&(forbidden.len() as i64))
        && offsets.windows(2).all(|pair| pair[0] <= pair[1]);
    if !whole {
        let expected = format!("{} ascending from 0 to {}", tokens.len() + 1, forbidden.len());
        return Err(to_py(Error::input("offsets", format!("{} of them", offsets.len()), &expected, "count again")));
    }
    let offsets: Vec<usize> = offsets.iter().map(|&at| at as usize).collect();
    let (starts, covers) = work(py, || align::covers_without(source, target, &tokens, &offsets, &forbidden))?;
    Ok((starts.into_pyarray(py), covers.into_pyarray(py)))
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
