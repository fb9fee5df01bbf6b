//! The hash functions that the file formats of word vectors prescribe.

/// 32-bit FNV-1a as fastText computes it: every byte is sign-extended to 32 bits.
pub fn fasttext(bytes: &[u8]) -> u32 {
    bytes.iter().fold(2_166_136_261, |hash, &byte| (hash ^ (byte as i8 as u32)).wrapping_mul(16_777_619))
}

/// MurmurHash64A of `bytes`. The seed of spaCy's string keys is 1.
pub fn murmur64a(bytes: &[u8], seed: u64) -> u64 {
    const M: u64 = 0xc6a4_a793_5bd1_e995;
    let mix = |k: u64| {
        let k = k.wrapping_mul(M);
        (k ^ (k >> 47)).wrapping_mul(M)
    };
    let mut hash = seed ^ (bytes.len() as u64).wrapping_mul(M);
    let blocks = bytes.chunks_exact(8);
    let tail = blocks.remainder();
    for block in blocks {
        hash = (hash ^ mix(little_endian(block))).wrapping_mul(M);
    }
    if !tail.is_empty() {
        hash = (hash ^ little_endian(tail)).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 47)).wrapping_mul(M);
    hash ^ (hash >> 47)
}

/// MurmurHash3 (x64, 128 bits) of `bytes` as two 64-bit halves. floret takes up to four 32-bit hashes from them.
pub fn murmur3_x64_128(bytes: &[u8], seed: u32) -> [u64; 2] {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    let first = |k: u64| k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
    let second = |k: u64| k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
    let (mut h1, mut h2) = (u64::from(seed), u64::from(seed));
    let blocks = bytes.chunks_exact(16);
    let tail = blocks.remainder();
    for block in blocks {
        let (low, high) = block.split_at(8);
        h1 = (h1 ^ first(little_endian(low))).rotate_left(27).wrapping_add(h2);
        h1 = h1.wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 = (h2 ^ second(little_endian(high))).rotate_left(31).wrapping_add(h1);
        h2 = h2.wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    // Mixing zero gives zero, so an empty half changes nothing.
    let (low, high) = tail.split_at(tail.len().min(8));
    h1 ^= first(little_endian(low));
    h2 ^= second(little_endian(high));
    let finish = |mut k: u64| {
        k = (k ^ (k >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        k = (k ^ (k >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        k ^ (k >> 33)
    };
    h1 ^= bytes.len() as u64;
    h2 ^= bytes.len() as u64;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    h1 = finish(h1);
    h2 = finish(h2);
    h1 = h1.wrapping_add(h2);
    [h1, h2.wrapping_add(h1)]
}

/// Up to eight bytes as a little-endian number.
fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_equal_published_values() {
        // Test vectors of FNV-1a. They are ASCII, where sign extension changes nothing.
        assert_eq!(fasttext(b""), 0x811c_9dc5);
        assert_eq!(fasttext(b"a"), 0xe40c_292c);
        assert_eq!(fasttext(b"foobar"), 0xbf9c_f968);
        // Published values of MurmurHash3 for seed 0.
        assert_eq!(murmur3_x64_128(b"", 0), [0, 0]);
        assert_eq!(murmur3_x64_128(b"hello", 0), [0xcbd8_a7b3_41bd_9b02, 0x5b1e_906a_48ae_1d19]);
    }

    #[test]
    fn bytes_above_127_are_sign_extended() {
        let expected = (2_166_136_261u32 ^ 0xffff_ff80).wrapping_mul(16_777_619);
        assert_eq!(fasttext(&[0x80]), expected);
    }
}
