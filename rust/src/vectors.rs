//! Readers of static word vectors.
