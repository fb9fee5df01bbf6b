"""Static vectors: fastText, word2vec and spaCy files, training, and bilingual spaces."""
