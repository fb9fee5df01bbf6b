//! What every function of the Python module needs: the exceptions and the worker threads.
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::error::Error;

/// The Python exception of an error.
pub(super) fn to_py(error: Error) -> PyErr {
    match error {
        Error::Input { .. } => PyValueError::new_err(error.to_string()),
        Error::Io { .. } => PyOSError::new_err(error.to_string()),
    }
}

/// The thread pool, and the id of the process in which its threads run.
static POOL: Mutex<Option<(u32, Arc<rayon::ThreadPool>)>> = Mutex::new(None);

/// Runs `job` in the thread pool of this process, with the interpreter lock released.
///
/// After a fork, the child has no copies of the threads of the parent, and a job in the parent's pool would wait for ever. The
/// child therefore creates a pool of its own.
pub(super) fn in_pool<T: Send>(py: Python<'_>, job: impl FnOnce() -> T + Send) -> PyResult<T> {
    py.detach(|| {
        let mut current = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        let process_id = std::process::id();
        let pool = match &*current {
            Some((owner, pool)) if *owner == process_id => Arc::clone(pool),
            _ => {
                let pool = rayon::ThreadPoolBuilder::new().build();
                let pool = Arc::new(pool.map_err(|error| PyOSError::new_err(error.to_string()))?);
                // Dropping the parent's pool would wait for its threads, so its memory is leaked instead.
                std::mem::forget(current.replace((process_id, Arc::clone(&pool))));
                pool
            }
        };
        drop(current);
        Ok(pool.install(job))
    })
}
