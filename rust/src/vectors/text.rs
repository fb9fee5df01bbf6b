//! Word vectors as text (word2vec with a header, `.vec`, GloVe without one), plain or gzipped, in one streaming pass.
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::{places, Found};
use crate::error::{Error, Result};

/// Vectors of the wanted words; the first of equal words in the file wins. Memory holds the wanted words alone.
pub fn read(path: &Path, words: &[Option<String>]) -> Result<Found> {
    let file = File::open(path).map_err(|error| Error::io(path, &error))?;
    let mut plain = BufReader::with_capacity(1 << 20, file);
    let start = plain.fill_buf().map_err(|error| Error::io(path, &error))?;
    let reader: Box<dyn Read> =
        if start.starts_with(&[0x1f, 0x8b]) { Box::new(MultiGzDecoder::new(plain)) } else { Box::new(plain) };
    read_lines(BufReader::with_capacity(1 << 20, reader), path, words)
}

fn read_lines(mut reader: impl BufRead, path: &Path, words: &[Option<String>]) -> Result<Found> {
    let wanted = places(words);
    let mut line = Vec::new();
    let mut number = 0u64;
    let mut announced = None;
    let mut dimension = 0usize;
    let (mut values, mut known) = (Vec::new(), vec![false; words.len()]);
    let mut rows = 0u64;
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line).map_err(|error| {
            fault(path, number + 1, format!("an unreadable line ({error})"), "a complete text file", "fetch it again")
        })?;
        if length == 0 {
            break;
        }
        number += 1;
        let text = line.trim_ascii_end();
        if number == 1 {
            if let Some((count, width)) = header(text) {
                announced = Some(count);
                dimension = width;
                values = vec![0f32; words.len() * dimension];
                continue;
            }
        }
        if text.is_empty() {
            continue;
        }
        if dimension == 0 {
            dimension = text.split(|&b| b == b' ').count() - 1;
            if dimension < 2 || parse_all(text, dimension).is_none() {
                let shown = String::from_utf8_lossy(&text[..text.len().min(40)]).into_owned();
                let advice = "give a word2vec or GloVe text file, a fastText .bin or a spaCy folder";
                return Err(fault(path, number, format!("{shown:?}"), "a header or a word with its numbers", advice));
            }
            values = vec![0f32; words.len() * dimension];
        }
        rows += 1;
        let (word, numbers) = split_word(text, dimension).ok_or_else(|| {
            let found = format!("{} fields", text.split(|&b| b == b' ').count());
            fault(path, number, found, format!("a word and {dimension} numbers"), "the file is damaged: fetch it again")
        })?;
        let Some(places) = wanted.get(word) else { continue };
        if places.iter().any(|&place| known[place as usize]) {
            continue;
        }
        let row = parse_numbers(numbers, dimension).ok_or_else(|| {
            let shown = String::from_utf8_lossy(word).into_owned();
            let expected = format!("{dimension} finite numbers");
            fault(
                path,
                number,
                format!("{shown:?} with something else"),
                expected,
                "the file is damaged: fetch it again",
            )
        })?;
        for &place in places {
            let place = place as usize;
            values[place * dimension..(place + 1) * dimension].copy_from_slice(&row);
            known[place] = true;
        }
    }
    match announced {
        _ if dimension == 0 => {
            Err(fault(path, number, "no vector", "a word and its numbers a line", "the file is empty: fetch it again"))
        }
        Some(count) if count != rows => {
            let expected = format!("{count} vectors, as its first line says");
            Err(fault(path, number, format!("{rows} vectors"), expected, "the file is truncated: fetch it again"))
        }
        _ => Ok(Found { values, known, dimension }),
    }
}

fn fault(path: &Path, line: u64, found: impl Into<String>, expected: impl Into<String>, advice: &str) -> Error {
    Error::input(format!("{}, line {line}", path.display()), found, expected, advice)
}

/// `count dimension` of a word2vec header.
fn header(text: &[u8]) -> Option<(u64, usize)> {
    let text = std::str::from_utf8(text).ok()?;
    let (count, dimension) = text.split_once(' ')?;
    let dimension = dimension.trim().parse().ok().filter(|d| (1..=1 << 16).contains(d))?;
    Some((count.parse().ok()?, dimension))
}

/// Splits off the last `dimension` fields; what is before them is the word, spaces included.
fn split_word(text: &[u8], dimension: usize) -> Option<(&[u8], &[u8])> {
    let space = text.iter().enumerate().rev().filter(|(_, &b)| b == b' ').nth(dimension - 1)?.0;
    Some((&text[..space], &text[space + 1..]))
}

fn parse_numbers(numbers: &[u8], dimension: usize) -> Option<Vec<f32>> {
    let text = std::str::from_utf8(numbers).ok()?;
    let row: Option<Vec<f32>> =
        text.split(' ').map(|field| field.parse::<f32>().ok().filter(|value| value.is_finite())).collect();
    row.filter(|row| row.len() == dimension)
}

fn parse_all(text: &[u8], dimension: usize) -> Option<Vec<f32>> {
    split_word(text, dimension).and_then(|(_, numbers)| parse_numbers(numbers, dimension))
}
