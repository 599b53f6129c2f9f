//! Reading and writing little-endian fields with bounds checked.

/// A row that is not in the format: it authenticated, so it was written by another version or
/// by a bug.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("metadata row is malformed: {0}")]
pub struct DecodeError(pub &'static str);

pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        if len > self.rest.len() {
            return Err(DecodeError("too short"));
        }
        let (head, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        Ok(self.bytes(N)?.try_into().expect("bytes(N) returns N bytes"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number in groups of seven bits, the lowest first; all but the last have the high bit set.
    /// Only the shortest form of a number is one.
    pub(crate) fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut n = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            if shift == 63 && byte > 1 || shift > 0 && byte == 0 {
                return Err(DecodeError("number of impossible length"));
            }
            n |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(n);
            }
        }
        Err(DecodeError("number of impossible length"))
    }

    /// A number of 32 bits in that form.
    pub(crate) fn varint32(&mut self) -> Result<u32, DecodeError> {
        self.varint()?.try_into().map_err(|_| DecodeError("number out of range"))
    }

    /// A signed number in that form: 0, -1, 1, -2, … as 0, 1, 2, 3, …
    pub(crate) fn zigzag(&mut self) -> Result<i64, DecodeError> {
        let n = self.varint()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(crate) fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError("trailing bytes")) }
    }
}

/// Appends fields; the mirror of [`Reader`].
pub(crate) trait Put {
    fn u8(&mut self, v: u8);
    fn u16(&mut self, v: u16);
    fn u32(&mut self, v: u32);
    fn u64(&mut self, v: u64);
    fn varint(&mut self, v: u64);
    fn zigzag(&mut self, v: i64);
}

impl Put for Vec<u8> {
    fn u8(&mut self, v: u8) {
        self.push(v);
    }
    fn u16(&mut self, v: u16) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn u32(&mut self, v: u32) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn u64(&mut self, v: u64) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.push(v as u8 | 0x80);
            v >>= 7;
        }
        self.push(v as u8);
    }
    fn zigzag(&mut self, v: i64) {
        self.varint((v << 1 ^ v >> 63) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_one_form_and_no_other_is_read() {
        // Guards against two rows of different bytes that say the same, and against a shift past
        // the last bit.
        let numbers = [0, 1, 127, 128, 300, 16_383, 16_384, u64::MAX >> 1, u64::MAX - 1, u64::MAX];
        for n in numbers {
            let mut bytes = Vec::new();
            bytes.varint(n);
            assert_eq!(Reader::new(&bytes).varint(), Ok(n));
            let mut signed = Vec::new();
            signed.zigzag(n as i64);
            assert_eq!(Reader::new(&signed).zigzag(), Ok(n as i64));
            // The same with a group of zeros behind it.
            *bytes.last_mut().expect("a byte") |= 0x80;
            assert!(Reader::new(&bytes).varint().is_err(), "cut short");
            bytes.push(0);
            assert!(Reader::new(&bytes).varint().is_err(), "longer than need be");
        }
        assert!(Reader::new(&[0xff; 11]).varint().is_err());
        assert!(Reader::new(&[0xff, 0xff, 0xff, 0xff, 0x1f]).varint32().is_err());
    }
}
