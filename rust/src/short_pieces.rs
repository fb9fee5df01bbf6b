//! A hash table of short pieces, whose keys are the bytes of a piece packed into one number.
use crate::token::NONE;

/// Number of bits in the filter of pieces of three bytes.
const FILTER_BITS: usize = 1 << 18;

/// Ids of pieces of 3 to 7 bytes, which are most pieces of a vocabulary.
///
/// Open addressing with linear probing. A look-up reads one cache line where the table of all pieces reads five, which makes
/// covers a third faster. hashbrown in place of this table was not faster.
#[derive(Debug)]
pub(crate) struct ShortPieces {
    /// Packed bytes and id of each slot, together in one cache line; an empty slot has key 0 and id [`NONE`].
    slots: Vec<(u64, u32)>,
    /// One bit for each hash of three bytes: whether there may be such a piece. Most look-ups of three bytes fail.
    three_byte_filter: Box<[u64; FILTER_BITS / 64]>,
}

impl ShortPieces {
    /// An empty table for up to `count` pieces.
    pub(crate) fn with_capacity(count: usize) -> Self {
        let slots = (count + count / 2).next_power_of_two().max(2);
        ShortPieces { slots: vec![(0, NONE); slots], three_byte_filter: Box::new([0; FILTER_BITS / 64]) }
    }

    /// Whether a piece of these bytes belongs into this table.
    #[inline]
    pub(crate) fn accepts(bytes: &[u8]) -> bool {
        (3..=7).contains(&bytes.len())
    }

    /// The bytes in little-endian order, with their number in the highest byte: different pieces have different keys, never 0.
    #[inline]
    fn pack(bytes: &[u8]) -> u64 {
        let low = match *bytes {
            [a, b, c] => u64::from(u32::from_le_bytes([a, b, c, 0])),
            // The first four bytes and the last four bytes, which overlap.
            _ => {
                let last = u64::from(read_u32(bytes, bytes.len() - 4));
                u64::from(read_u32(bytes, 0)) | last >> (8 * (8 - bytes.len())) << 32
            }
        };
        low | (bytes.len() as u64) << 56
    }

    /// Index of the filter bit of three bytes.
    #[inline]
    fn filter_bit(bytes: [u8; 3]) -> usize {
        let number = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
        (number.wrapping_mul(0x9e37_79b1) >> 14) as usize
    }

    /// The slot that has this key, else the empty slot where it would be inserted.
    #[inline]
    fn find_slot(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & mask;
        while self.slots[slot].0 != 0 && self.slots[slot].0 != key {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// Inserts a piece; it replaces a piece of the same bytes.
    pub(crate) fn insert(&mut self, bytes: &[u8], id: u32) {
        let key = ShortPieces::pack(bytes);
        let slot = self.find_slot(key);
        self.slots[slot] = (key, id);
        if let [a, b, c] = *bytes {
            let bit = ShortPieces::filter_bit([a, b, c]);
            self.three_byte_filter[bit / 64] |= 1 << (bit % 64);
        }
    }

    /// The id of the piece of these 3 to 7 bytes, or [`NONE`].
    #[inline]
    pub(crate) fn get(&self, bytes: &[u8]) -> u32 {
        self.slots[self.find_slot(ShortPieces::pack(bytes))].1
    }

    /// The id of the piece of these three bytes, or [`NONE`]; checks the filter first.
    #[inline]
    pub(crate) fn get_three(&self, bytes: [u8; 3]) -> u32 {
        let bit = ShortPieces::filter_bit(bytes);
        if self.three_byte_filter[bit / 64] >> (bit % 64) & 1 == 0 {
            return NONE;
        }
        self.get(&bytes)
    }
}

/// The four bytes from `start` on as a little-endian number.
#[inline]
pub(crate) fn read_u32(bytes: &[u8], start: usize) -> u32 {
    u32::from_le_bytes([bytes[start], bytes[start + 1], bytes[start + 2], bytes[start + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The key contains the bytes and their number, so that different pieces have different keys.
        #[test]
        fn a_key_contains_all_bytes_and_their_number(text in prop::collection::vec(any::<u8>(), 3..8)) {
            let packed = ShortPieces::pack(&text).to_le_bytes();
            prop_assert_eq!(usize::from(packed[7]), text.len());
            prop_assert_eq!(&packed[..text.len()], &text[..]);
            prop_assert!(packed[text.len()..7].iter().all(|&byte| byte == 0));
        }
    }
}
