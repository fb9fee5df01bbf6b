//! Python face of the vector readers.
use pyo3::prelude::*;

/// Adds the vector readers to the native module.
pub fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
