//! Short pieces by their bytes, packed into one number or two.
use crate::index::NONE;

/// Ids by short texts, each text in one number that is never 0: one look at memory where the general table takes five.
#[derive(Debug)]
struct Packed<K> {
    /// Key and id side by side, so that a look is at one line of the cache.
    entries: Vec<(K, u32)>,
}

impl<K: Copy + Default + PartialEq> Packed<K> {
    fn with_capacity(pieces: usize) -> Self {
        Packed { entries: vec![(K::default(), NONE); (pieces + pieces / 2).next_power_of_two().max(2)] }
    }

    /// The slot of a key: the one that has it, else the empty one where it would go.
    fn slot(&self, key: K, hash: u64) -> usize {
        let mask = self.entries.len() - 1;
        let mut slot = (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & mask;
        while self.entries[slot].0 != K::default() && self.entries[slot].0 != key {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn insert(&mut self, key: K, hash: u64, id: u32) {
        let slot = self.slot(key, hash);
        self.entries[slot] = (key, id);
    }

    /// The id of a key, or [`NONE`].
    fn get(&self, key: K, hash: u64) -> u32 {
        self.entries[self.slot(key, hash)].1
    }
}

/// Pieces of 3 to 7 bytes, most of a vocabulary. It shortened covers by a third.
#[derive(Debug)]
pub(crate) struct Few {
    packed: Packed<u64>,
    /// Which pieces of three bytes there may be, by [`Few::bit`]: most that are asked for are none.
    threes: Box<[u64; THREES / 64]>,
}

const THREES: usize = 1 << 18;

impl Few {
    /// Empty, with room for so many pieces.
    pub(crate) fn with_capacity(pieces: usize) -> Self {
        Few { packed: Packed::with_capacity(pieces), threes: Box::new([0; THREES / 64]) }
    }

    pub(crate) fn takes(bytes: &[u8]) -> bool {
        (3..=7).contains(&bytes.len())
    }

    /// The bytes and, so that no two texts share a number, their count.
    fn pack(bytes: &[u8]) -> u64 {
        let low = match *bytes {
            [a, b, c] => u64::from(u32::from_le_bytes([a, b, c, 0])),
            // The first four and the last four bytes, which overlap.
            _ => u64::from(four(bytes, 0)) | u64::from(four(bytes, bytes.len() - 4)) >> (8 * (8 - bytes.len())) << 32,
        };
        low | (bytes.len() as u64) << 56
    }

    /// The place of three bytes among [`THREES`] bits.
    fn bit(bytes: [u8; 3]) -> usize {
        let three = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
        (three.wrapping_mul(0x9e37_79b1) >> 14) as usize
    }

    pub(crate) fn insert(&mut self, bytes: &[u8], id: u32) {
        let key = Few::pack(bytes);
        self.packed.insert(key, key, id);
        if let [a, b, c] = *bytes {
            let bit = Few::bit([a, b, c]);
            self.threes[bit / 64] |= 1 << (bit % 64);
        }
    }

    /// The id of these bytes, or [`NONE`].
    pub(crate) fn get(&self, bytes: &[u8]) -> u32 {
        let key = Few::pack(bytes);
        self.packed.get(key, key)
    }

    /// The same of three bytes.
    pub(crate) fn three(&self, bytes: [u8; 3]) -> u32 {
        let bit = Few::bit(bytes);
        if self.threes[bit / 64] >> (bit % 64) & 1 == 0 {
            return NONE;
        }
        self.get(&bytes)
    }
}

/// Pieces of 8 to 15 bytes, nearly all the others.
#[derive(Debug)]
pub(crate) struct Middle {
    packed: Packed<[u64; 2]>,
}

impl Middle {
    /// Empty, with room for so many pieces.
    pub(crate) fn with_capacity(pieces: usize) -> Self {
        Middle { packed: Packed::with_capacity(pieces) }
    }

    pub(crate) fn takes(bytes: &[u8]) -> bool {
        (8..=15).contains(&bytes.len())
    }

    /// The bytes and their count, and a hash.
    fn pack(bytes: &[u8]) -> ([u64; 2], u64) {
        let last = bytes.len() - 8;
        let low = u64::from(four(bytes, 0)) | u64::from(four(bytes, 4)) << 32;
        let end = u64::from(four(bytes, last)) | u64::from(four(bytes, last + 4)) << 32;
        // Of the last eight bytes those that are not among the first; none where there are just eight.
        let high = end.checked_shr(8 * (16 - bytes.len()) as u32).unwrap_or(0) | (bytes.len() as u64) << 56;
        ([low, high], low.rotate_left(23) ^ high.wrapping_mul(0xc2b2_ae3d_27d4_eb4f))
    }

    pub(crate) fn insert(&mut self, bytes: &[u8], id: u32) {
        let (key, hash) = Middle::pack(bytes);
        self.packed.insert(key, hash, id);
    }

    /// The id of these bytes, or [`NONE`].
    pub(crate) fn get(&self, bytes: &[u8]) -> u32 {
        let (key, hash) = Middle::pack(bytes);
        self.packed.get(key, hash)
    }
}

/// Four bytes as a number.
pub(crate) fn four(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Texts of the same number are the same text.
        #[test]
        fn packing_loses_nothing(text in prop::collection::vec(any::<u8>(), 3..16)) {
            let (number, count) = if Few::takes(&text) {
                (u128::from(Few::pack(&text) & !(0xff << 56)), Few::pack(&text) >> 56)
            } else {
                let ([low, high], _) = Middle::pack(&text);
                (u128::from(low) | u128::from(high & !(0xff << 56)) << 64, high >> 56)
            };
            prop_assert_eq!(count as usize, text.len());
            prop_assert_eq!(&number.to_le_bytes()[..text.len()], &text[..]);
            prop_assert!(number.to_le_bytes()[text.len()..].iter().all(|&byte| byte == 0));
        }
    }
}
