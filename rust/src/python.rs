//! The Python face: conversions only, no algorithm.
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::error::Error;

mod vectors;

/// Maps the crate's error to the exception a Python caller expects.
fn to_py(error: Error) -> PyErr {
    match error {
        Error::Input { .. } => PyValueError::new_err(error.to_string()),
        Error::Io { .. } => PyOSError::new_err(error.to_string()),
    }
}

/// Native part of saltlm; use it through the Python package.
#[pymodule(gil_used = false)]
fn _rust(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    vectors::register(module)?;
    Ok(())
}
