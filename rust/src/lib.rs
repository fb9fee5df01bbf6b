#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod align;
pub mod cover;
pub mod error;
pub mod index;
mod packed;
pub mod tiktoken;
pub mod token;
pub mod tokenizer_json;
pub mod vectors;

#[cfg(feature = "python")]
mod python;
