//! Short pieces by their bytes, packed into one number.
use crate::index::NONE;

/// Pieces of 3 to 7 bytes, most of a vocabulary, by their bytes in one number: one look at memory where the general table
/// takes five. It shortened covers by a third.
#[derive(Debug)]
pub(crate) struct Few {
    /// Key and id side by side, so that a look is at one line of the cache; key 0 is an empty slot.
    entries: Vec<(u64, u32)>,
    /// Which pieces of three bytes there may be, by [`Few::bit`]: most that are asked for are none.
    threes: Box<[u64; THREES / 64]>,
}

const THREES: usize = 1 << 18;

impl Few {
    /// Empty, with room for so many pieces.
    pub(crate) fn with_capacity(pieces: usize) -> Self {
        let slots = (pieces + pieces / 2).next_power_of_two().max(2);
        Few { entries: vec![(0, NONE); slots], threes: Box::new([0; THREES / 64]) }
    }

    pub(crate) fn takes(bytes: &[u8]) -> bool {
        (3..=7).contains(&bytes.len())
    }

    /// The bytes and, so that no two texts share a number, their count; never 0.
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

    /// The slot of a packed key: the one that has it, else the empty one where it would go.
    fn slot(&self, packed: u64) -> usize {
        let mask = self.entries.len() - 1;
        let mut slot = (packed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & mask;
        while self.entries[slot].0 != 0 && self.entries[slot].0 != packed {
            slot = (slot + 1) & mask;
        }
        slot
    }

    pub(crate) fn insert(&mut self, bytes: &[u8], id: u32) {
        let packed = Few::pack(bytes);
        let slot = self.slot(packed);
        self.entries[slot] = (packed, id);
        if let [a, b, c] = *bytes {
            let bit = Few::bit([a, b, c]);
            self.threes[bit / 64] |= 1 << (bit % 64);
        }
    }

    /// The id of these bytes, or [`NONE`].
    pub(crate) fn get(&self, bytes: &[u8]) -> u32 {
        self.entries[self.slot(Few::pack(bytes))].1
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

/// Four bytes as a number.
pub(crate) fn four(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The number holds the text and its length, so that texts of the same number are the same text.
        #[test]
        fn packing_loses_nothing(text in prop::collection::vec(any::<u8>(), 3..8)) {
            let packed = Few::pack(&text).to_le_bytes();
            prop_assert_eq!(usize::from(packed[7]), text.len());
            prop_assert_eq!(&packed[..text.len()], &text[..]);
            prop_assert!(packed[text.len()..7].iter().all(|&byte| byte == 0));
        }
    }
}
