//! The error type of the crate.
use std::path::Path;

/// An error of reading or aligning. `python.rs` maps each variant to one Python exception.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The input is invalid. Python raises `ValueError`.
    #[error("{what}: found {found}; expected {expected}; {advice}")]
    Input {
        /// The invalid input: a path or the name of an argument.
        what: String,
        /// What the input contains.
        found: String,
        /// What a valid input contains.
        expected: String,
        /// What the user can do about it.
        advice: String,
    },
    /// The operating system could not read the file. Python raises `OSError`.
    #[error("{path}: cannot be read: {message}")]
    Io {
        /// Path of the file.
        path: String,
        /// Message of the operating system.
        message: String,
    },
}

impl Error {
    /// Builds an [`Error::Input`] from its four parts.
    pub fn input(
        what: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Error::Input { what: what.into(), found: found.into(), expected: expected.into(), advice: advice.into() }
    }

    /// Builds an [`Error::Io`] for the file at `path`.
    pub fn io(path: impl AsRef<Path>, error: &std::io::Error) -> Self {
        Error::Io { path: path.as_ref().display().to_string(), message: error.to_string() }
    }
}

/// Refuses `data` if it is a Git LFS pointer instead of the content of the file `name`.
///
/// # Errors
///
/// [`Error::Input`], which says that `expected` was expected.
pub(crate) fn refuse_git_lfs_pointer(data: &[u8], name: &str, expected: &str) -> Result<()> {
    if data.starts_with(b"version https://git-lfs") {
        let advice = "download the file that it points to: git lfs pull";
        return Err(Error::input(name, "a git-lfs pointer", expected, advice));
    }
    Ok(())
}

/// Result with the [`Error`] of this crate.
pub type Result<T> = std::result::Result<T, Error>;
