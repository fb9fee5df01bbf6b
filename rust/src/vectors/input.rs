//! Opens a file of vectors for reading: regular files only, unpacked while they are read, within a size limit.
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::bufread::{DeflateDecoder, MultiGzDecoder};
use flate2::Crc;
use zip::{CompressionMethod, ZipArchive};

use crate::error::{Error, Result};

/// Widest vectors that are read. No published word vectors are wider than some thousand values.
pub const MAX_WIDTH: usize = 1 << 14;
/// Largest number of values of all requested vectors together: 4 GiB in 32-bit floating point.
pub const MAX_VALUES: usize = 1 << 30;
/// Longest line of a text file, and longest word of a binary file, in bytes: 64 bytes for each value of the widest vector.
pub const MAX_LINE_BYTES: usize = 64 * MAX_WIDTH;
/// A packed file may unpack to this many times its size, or to [`MIN_UNPACKED_BYTES`] if that is more. Numbers in text are
/// packed to a third of their size.
const MAX_EXPANSION: u64 = 100;
const MIN_UNPACKED_BYTES: u64 = 1 << 30;

const BUFFER_BYTES: usize = 1 << 20;
const GZIP: &[u8] = &[0x1f, 0x8b];
/// First bytes of a zip archive, and of one without files.
const ZIP: [&[u8]; 2] = [b"PK\x03\x04", b"PK\x05\x06"];
/// First bytes of other packings, their name and the program that unpacks them.
const OTHER_PACKINGS: [(&[u8], &str, &str); 4] = [
    (b"\xfd7zXZ\0", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "7z", "7z x"),
    (b"Rar!\x1a\x07", "rar", "unrar x"),
];
/// The bytes of a bzip2 file after `BZh` and the digit of the block size.
const BZIP2_BLOCK: &[u8] = b"1AY&SY";

/// A file of vectors, opened at its first byte.
pub struct Input {
    /// The unpacked content.
    pub reader: Box<dyn BufRead + Send>,
    /// Whether the file is packed, so that it cannot be mapped.
    pub packed: bool,
}

/// Opens a regular file. A pipe or a device could block for ever.
///
/// # Errors
///
/// [`Error::Io`] for a file that cannot be opened; [`Error::Input`] for anything but a regular file.
pub fn open_regular(path: &Path) -> Result<File> {
    let io_error = |error: io::Error| Error::io(path, &error);
    let refuse = || {
        let advice = "write the content to a file and name that";
        Error::input(path.display().to_string(), "no regular file", "a regular file", advice)
    };
    if !std::fs::metadata(path).map_err(io_error)?.is_file() {
        return Err(refuse());
    }
    let file = File::open(path).map_err(io_error)?;
    if !file.metadata().map_err(io_error)?.is_file() {
        return Err(refuse());
    }
    Ok(file)
}

/// Opens a file of vectors: plain, gzipped, or the file of vectors in a zip archive.
///
/// # Errors
///
/// As [`open_regular`]; [`Error::Input`] for another packing and for an archive of several files.
pub fn open(path: &Path) -> Result<Input> {
    let file = open_regular(path)?;
    let size = file.metadata().map_err(|error| Error::io(path, &error))?.len();
    let limit = MIN_UNPACKED_BYTES.max(size.saturating_mul(MAX_EXPANSION));
    let mut plain = BufReader::with_capacity(BUFFER_BYTES, file);
    let start = plain.fill_buf().map_err(|error| Error::io(path, &error))?;
    let unpacked: Box<dyn Read + Send> = if start.starts_with(GZIP) {
        Box::new(Unpacked { inner: MultiGzDecoder::new(plain), left: limit, checksum: None })
    } else if ZIP.iter().any(|magic| start.starts_with(magic)) {
        zip_member(path, plain.into_inner(), limit)?
    } else {
        refuse_other_packing(path, start)?;
        return Ok(Input { reader: Box::new(plain), packed: false });
    };
    Ok(Input { reader: Box::new(BufReader::with_capacity(BUFFER_BYTES, unpacked)), packed: true })
}

fn refuse_other_packing(path: &Path, start: &[u8]) -> Result<()> {
    let is_bzip2 = start.starts_with(b"BZh") && start.get(4..).is_some_and(|rest| rest.starts_with(BZIP2_BLOCK));
    let other = OTHER_PACKINGS.iter().find(|(magic, ..)| start.starts_with(magic));
    let packing = other.map(|&(_, name, program)| (name, program)).or(is_bzip2.then_some(("bzip2", "bunzip2")));
    let Some((name, program)) = packing else { return Ok(()) };
    let advice = format!("unpack it first: {program} {}", path.display());
    Err(Error::input(path.display().to_string(), format!("a {name} file"), "a plain, gzip or zip file", advice))
}

/// Opens the file of vectors in a zip archive.
fn zip_member(path: &Path, file: File, limit: u64) -> Result<Box<dyn Read + Send>> {
    let damaged = |found: String| {
        let advice = "the file is damaged: download it again";
        Error::input(path.display().to_string(), found, "a zip archive with one file of vectors", advice)
    };
    let mut archive =
        ZipArchive::new(BufReader::new(file)).map_err(|error| damaged(format!("a damaged zip archive ({error})")))?;
    let index = vectors_member(path, &archive)?;
    let member = archive.by_index_raw(index).map_err(|error| damaged(format!("a damaged zip archive ({error})")))?;
    let (method, start, packed, crc) =
        (member.compression(), member.data_start(), member.compressed_size(), member.crc32());
    let encrypted = member.encrypted();
    drop(member);
    if encrypted || !matches!(method, CompressionMethod::Stored | CompressionMethod::Deflated) {
        let found =
            if encrypted { "an encrypted zip archive".to_owned() } else { format!("a zip archive packed by {method}") };
        let advice = format!("unpack it first: unzip {}", path.display());
        return Err(Error::input(path.display().to_string(), found, "one packed by deflate", advice));
    }
    let start = start.ok_or_else(|| damaged("a damaged zip archive".to_owned()))?;
    let mut file = archive.into_inner();
    file.seek(SeekFrom::Start(start)).map_err(|error| Error::io(path, &error))?;
    let content = file.take(packed);
    let checksum = Some((Crc::new(), crc));
    Ok(if method == CompressionMethod::Stored {
        Box::new(Unpacked { inner: content, left: limit, checksum })
    } else {
        Box::new(Unpacked { inner: DeflateDecoder::new(content), left: limit, checksum })
    })
}

/// Index of the file of vectors: the only file, or the `.bin` beside the `.vec` of the same name, as fastText publishes them.
/// The `.bin` has the words of the `.vec`, and gives vectors to further words.
fn vectors_member<R: Read + Seek>(path: &Path, archive: &ZipArchive<R>) -> Result<usize> {
    let names: Vec<&str> =
        archive.file_names().filter(|name| !name.ends_with('/') && !name.starts_with("__MACOSX/")).collect();
    let chosen = match names.as_slice() {
        [name] => Some(*name),
        [one, other] => [(one, other), (other, one)]
            .iter()
            .find(|(bin, vec)| bin.strip_suffix(".bin").is_some_and(|stem| vec.strip_suffix(".vec") == Some(stem)))
            .map(|(bin, _)| **bin),
        _ => None,
    };
    chosen.and_then(|name| archive.index_for_name(name)).ok_or_else(|| {
        let shown: Vec<String> = names.iter().take(3).map(|name| format!("{name:?}")).collect();
        let more = if names.len() > shown.len() { ", ..." } else { "" };
        let found = format!("a zip archive of {} files ({}{more})", names.len(), shown.join(", "));
        let advice = format!("unpack it and name the file of vectors: unzip {}", path.display());
        Error::input(path.display().to_string(), found, "an archive with one file of vectors", advice)
    })
}

/// Unpacked content that stops with an error at a size limit, and whose checksum is compared at its end.
struct Unpacked<R> {
    inner: R,
    left: u64,
    checksum: Option<(Crc, u32)>,
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| io::Error::other(Expansion))?;
        if let Some((sum, expected)) = &mut self.checksum {
            sum.update(buffer.get(..count).unwrap_or_default());
            if count == 0 && !buffer.is_empty() && sum.sum() != *expected {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "wrong checksum"));
            }
        }
        Ok(count)
    }
}

/// The error of a file that unpacks to more than the limit.
#[derive(Debug)]
struct Expansion;

impl fmt::Display for Expansion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "more than {MAX_EXPANSION} times its size when unpacked")
    }
}

impl std::error::Error for Expansion {}

/// The error of a file that could not be read to its end.
pub fn read_error(what: String, error: &io::Error) -> Error {
    if error.get_ref().is_some_and(|inner| inner.is::<Expansion>()) {
        let expected = format!("at most that, or {} GiB", MIN_UNPACKED_BYTES >> 30);
        return Error::input(what, error.to_string(), expected, "numbers do not pack so well: download the file again");
    }
    let found = format!("an unreadable part ({error})");
    Error::input(what, found, "a complete file", "the file is truncated or damaged: download it again")
}

/// Checks that `count` vectors of this width are few enough to be kept in memory.
///
/// # Errors
///
/// [`Error::Input`] if they have more than [`MAX_VALUES`] values.
pub fn check_size(path: &Path, count: usize, dimension: usize) -> Result<()> {
    if count.saturating_mul(dimension) <= MAX_VALUES {
        return Ok(());
    }
    let found = format!("vectors of width {dimension} for {count} words");
    let expected = format!("at most {MAX_VALUES} values in all");
    Err(Error::input(path.display().to_string(), found, expected, "give narrower vectors"))
}
