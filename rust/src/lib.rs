//! Vocabulary alignment, subword overlap and static-vector readers.
//!
//! The crate knows no Python but for the `python` module, which is compiled only with the `python` feature.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod align;
pub mod cover;
pub mod error;
pub mod index;
pub mod tiktoken;
pub mod token;
pub mod tokenizer_json;
pub mod vectors;

#[cfg(feature = "python")]
mod python;
