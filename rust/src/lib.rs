#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod align;
pub mod cover;
pub mod error;
pub mod index;
mod short_pieces;
pub mod tiktoken;
pub mod token;
pub mod tokenizer_json;
// The readers of word vectors index by numbers that they read from files.
#[cfg_attr(not(test), deny(clippy::indexing_slicing))]
pub mod vectors;

#[cfg(feature = "python")]
mod python;
