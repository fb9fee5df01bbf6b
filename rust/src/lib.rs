//! Vocabulary alignment, subword overlap and static-vector readers.
//!
//! The crate knows no Python but for [`python`], which is compiled only with the `python` feature.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod error;
pub mod vectors;

#[cfg(feature = "python")]
mod python;
