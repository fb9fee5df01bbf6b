//! The crate's one error type.
use std::fmt;

/// What can go wrong while reading or aligning; mapped to Python exceptions in one place (`python.rs`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The input is not what it should be: `what` was given, `found` in it, `expected` instead, and what to `do_`.
    Input {
        /// Which input (a path or the name of an argument).
        what: String,
        /// What was found there.
        found: String,
        /// What was expected.
        expected: String,
        /// What the user can do about it.
        advice: String,
    },
    /// The operating system refused a read.
    Io {
        /// The path that was read.
        path: String,
        /// The system's own message.
        message: String,
    },
}

impl Error {
    /// An [`Error::Input`] from its four parts.
    pub fn input(
        what: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Error::Input { what: what.into(), found: found.into(), expected: expected.into(), advice: advice.into() }
    }

    /// An [`Error::Io`] for `path`.
    pub fn io(path: impl AsRef<std::path::Path>, error: &std::io::Error) -> Self {
        Error::Io { path: path.as_ref().display().to_string(), message: error.to_string() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Input { what, found, expected, advice } => {
                write!(f, "{what}: found {found}; expected {expected}; {advice}")
            }
            Error::Io { path, message } => write!(f, "{path}: cannot be read: {message}"),
        }
    }
}

impl std::error::Error for Error {}

/// Result with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
