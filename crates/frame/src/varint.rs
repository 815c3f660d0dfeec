//! Unsigned LEB128 integers, and a cursor that reads them and fixed words.

/// The most bytes that a `u64` takes.
pub const MAX_BYTES: usize = 10;

/// Appends `value` to `out`, 7 bits a byte, least significant first.
#[inline]
pub fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length as a varint, then the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// How many bytes [`put`] would append.
#[inline]
pub fn len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Maps small differences of either sign to small numbers.
#[inline]
pub fn zigzag(difference: u64) -> u64 {
    let signed = difference as i64;
    ((signed << 1) ^ (signed >> 63)) as u64
}

/// The difference that [`zigzag`] has mapped.
#[inline]
pub fn unzigzag(value: u64) -> u64 {
    (value >> 1) ^ (value & 1).wrapping_neg()
}

/// The input ended early, or held a number that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("truncated or overlong encoding at byte {at}")]
pub struct Malformed {
    /// Offset in the input of the value that could not be read.
    pub at: usize,
}

/// Reads values from a slice, in order. Never reads past its end, and never
/// allocates for a length that it has not checked against what is left.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// A cursor at the first byte of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Cursor { data, at: 0 }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.data.len() - self.at
    }

    /// Whether everything has been read.
    pub fn is_empty(&self) -> bool {
        self.at == self.data.len()
    }

    /// The next varint.
    #[inline]
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let start = self.at;
        let mut value = 0u64;
        let mut shift = 0;
        while let Some(&byte) = self.data.get(self.at) {
            self.at += 1;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
            shift += 7;
            if shift > 63 {
                break;
            }
        }
        Err(Malformed { at: start })
    }

    /// The next varint, which must fit in 32 bits.
    pub fn varint_u32(&mut self) -> Result<u32, Malformed> {
        let at = self.at;
        u32::try_from(self.varint()?).map_err(|_| Malformed { at })
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let at = self.at;
        let end = at.checked_add(n).ok_or(Malformed { at })?;
        let bytes = self.data.get(at..end).ok_or(Malformed { at })?;
        self.at = end;
        Ok(bytes)
    }

    /// A varint length, then so many bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let at = self.at;
        let n = usize::try_from(self.varint()?).map_err(|_| Malformed { at })?;
        self.take(n)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    /// The next four bytes, little-endian.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        let at = self.at;
        let bytes = self.take(4)?.try_into().map_err(|_| Malformed { at })?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// The next eight bytes, little-endian.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        let at = self.at;
        let bytes = self.take(8)?.try_into().map_err(|_| Malformed { at })?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The next sixteen bytes, little-endian.
    pub fn u128(&mut self) -> Result<u128, Malformed> {
        let at = self.at;
        let bytes = self.take(16)?.try_into().map_err(|_| Malformed { at })?;
        Ok(u128::from_le_bytes(bytes))
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        let bytes = &self.data[self.at..];
        self.at = self.data.len();
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_put_is_read_and_its_length_foretold(value in any::<u64>(), shift in 0u32..64) {
            let value = value >> shift;
            let mut out = Vec::new();
            put(&mut out, value);
            prop_assert_eq!(out.len(), len(value));
            let mut cursor = Cursor::new(&out);
            prop_assert_eq!(cursor.varint(), Ok(value));
            prop_assert!(cursor.is_empty());
        }

        #[test]
        fn no_input_panics_or_reads_past_its_end(data in proptest::collection::vec(any::<u8>(), 0..32)) {
            let mut cursor = Cursor::new(&data);
            while !cursor.is_empty() {
                if cursor.varint().is_err() {
                    break;
                }
            }
            let _ = cursor.bytes();
        }
    }

    #[test]
    fn a_number_past_64_bits_is_malformed() {
        let mut eleven = vec![0xff; 10];
        eleven.push(0x01);
        assert_eq!(Cursor::new(&eleven).varint(), Err(Malformed { at: 0 }));
        let mut overflow = vec![0xff; 9];
        overflow.push(0x02);
        assert_eq!(Cursor::new(&overflow).varint(), Err(Malformed { at: 0 }));
        let mut most = vec![0xff; 9];
        most.push(0x01);
        assert_eq!(Cursor::new(&most).varint(), Ok(u64::MAX));
    }

    #[test]
    fn a_length_beyond_the_input_is_malformed() {
        let mut out = Vec::new();
        put(&mut out, u64::MAX);
        out.extend_from_slice(b"abc");
        assert!(Cursor::new(&out).bytes().is_err());
    }
}
