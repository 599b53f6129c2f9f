//! The recovery key: 32 random bytes as a person can type them (FORMAT.md "Recovery key").
//!
//! 13 groups of five letters and digits, the last of each a check character over the group and its
//! place, so that a typing error is named by its group. Upper and lower case, spaces and hyphens do
//! not matter, nor does a letter that looks like a digit.

use zeroize::Zeroizing;

use super::derive::{KEY, fill_random};

/// Letters and digits without I, L, O and U (Crockford's base 32).
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Groups of a recovery key, and characters of a group, its check character included.
const GROUPS: usize = 13;
const GROUP: usize = 5;

/// Why a text is no recovery key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// Too short or too long.
    #[error("the recovery key has {0} letters and digits instead of 65")]
    Length(usize),
    /// Its check character does not fit, or it has a character that no recovery key has.
    #[error("group {0} of the recovery key has a typing error")]
    Group(usize),
}

/// 32 random bytes that open a slot. Wiped when dropped.
pub struct RecoveryKey(Zeroizing<[u8; KEY]>);

impl RecoveryKey {
    /// A fresh one from the operating system's random source.
    pub fn random() -> RecoveryKey {
        let mut bytes = Zeroizing::new([0u8; KEY]);
        fill_random(&mut bytes[..]);
        RecoveryKey(bytes)
    }

    /// The one with these bytes.
    pub fn from_bytes(bytes: &[u8; KEY]) -> RecoveryKey {
        RecoveryKey(Zeroizing::new(*bytes))
    }

    /// The secret bytes.
    pub(super) fn expose(&self) -> &[u8; KEY] {
        &self.0
    }

    /// Its 13 groups, separated by hyphens.
    pub fn to_text(&self) -> Zeroizing<String> {
        // Filled to its end at once, so that growing leaves no copies in freed memory.
        let mut text = Zeroizing::new(String::with_capacity(GROUPS * (GROUP + 1)));
        for group in 0..GROUPS {
            if group > 0 {
                text.push('-');
            }
            let values: [u8; GROUP - 1] = std::array::from_fn(|i| self.value(group * 4 + i));
            for value in values.iter().chain([&check(group, &values)]) {
                text.push(char::from(ALPHABET[usize::from(*value)]));
            }
        }
        text
    }

    /// The five bits at `5 × at`, the first the highest; zeros behind the end.
    fn value(&self, at: usize) -> u8 {
        let bit = |n: usize| self.0.get(n / 8).map_or(0, |byte| byte >> (7 - n % 8) & 1);
        (0..5).fold(0, |value, n| value << 1 | bit(at * 5 + n))
    }

    /// Reads what a person typed.
    ///
    /// # Errors
    /// Every [`RecoveryError`]; of several typing errors the first.
    pub fn from_text(text: &str) -> Result<RecoveryKey, RecoveryError> {
        let typed = text.bytes().filter(|c| !c.is_ascii_whitespace() && *c != b'-');
        let typed = Zeroizing::new(typed.collect::<Vec<u8>>());
        let mut bytes = Zeroizing::new([0u8; KEY]);
        for (group, chars) in typed.chunks(GROUP).take(GROUPS).enumerate() {
            let wrong = RecoveryError::Group(group + 1);
            let mut values = Zeroizing::new([0u8; GROUP]);
            for (value, c) in values.iter_mut().zip(chars) {
                *value = value_of(*c).ok_or(wrong)?;
            }
            let data = values.first_chunk().expect("a group is longer by one");
            if chars.len() == GROUP && values[GROUP - 1] != check(group, data) {
                return Err(wrong);
            }
            for (i, value) in data.iter().enumerate() {
                put(&mut bytes, group * 4 + i, *value).ok_or(wrong)?;
            }
        }
        match typed.len() == GROUPS * GROUP {
            true => Ok(RecoveryKey(bytes)),
            false => Err(RecoveryError::Length(typed.len())),
        }
    }
}

/// Sets the five bits at `5 × at`; `None` if one behind the end is set.
fn put(bytes: &mut [u8; KEY], at: usize, value: u8) -> Option<()> {
    for n in 0..5 {
        let (bit, place) = (value >> (4 - n) & 1, at * 5 + n);
        match bytes.get_mut(place / 8) {
            Some(byte) => *byte |= bit << (7 - place % 8),
            None if bit == 0 => {}
            None => return None,
        }
    }
    Some(())
}

fn value_of(c: u8) -> Option<u8> {
    let c = match c.to_ascii_uppercase() {
        b'I' | b'L' => b'1',
        b'O' => b'0',
        other => other,
    };
    ALPHABET.iter().position(|known| *known == c).map(|at| at as u8)
}

/// The check character of a group: a sum over GF(32) in which each place has its own factor, so
/// that one wrong character, or two exchanged, never give the same.
fn check(group: usize, values: &[u8; GROUP - 1]) -> u8 {
    let number = group as u8 + 1;
    values.iter().rev().fold(number, |sum, value| twice(sum) ^ value)
}

/// Times x in GF(2)[x] modulo x⁵ + x² + 1.
fn twice(value: u8) -> u8 {
    let shifted = value << 1;
    if shifted & 0x20 == 0 { shifted } else { shifted ^ 0x25 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> RecoveryKey {
        RecoveryKey::from_bytes(&std::array::from_fn(|i| i as u8))
    }

    #[test]
    fn what_is_typed_is_what_was_printed_however_it_is_typed() {
        // Guards against a key on paper that nobody can type: case, spaces, lookalikes.
        for bytes in [[0; KEY], [0xff; KEY], *known().expose()] {
            let text = RecoveryKey::from_bytes(&bytes).to_text();
            assert_eq!(text.len(), 13 * 6 - 1);
            let typed = text.to_lowercase().replace('-', " ").replace('1', "l").replace('0', "o");
            assert_eq!(RecoveryKey::from_text(&typed).expect("reads").expose(), &bytes);
        }
        let page = include_str!("../../docs/FORMAT.md");
        assert!(page.contains(&**known().to_text()), "{}", *known().to_text());
    }

    #[test]
    fn every_typing_error_is_found_and_named_by_its_group() {
        // Guards against a wrong key that is tried, and against "wrong" without saying where: each
        // character replaced by each other one, neighbours exchanged, groups exchanged, cut.
        let text = known().to_text().replace('-', "");
        let refused = |typed: &[u8]| {
            let typed = std::str::from_utf8(typed).expect("ASCII");
            RecoveryKey::from_text(typed).err()
        };
        for at in 0..text.len() {
            for other in ALPHABET.iter().chain(b"U!") {
                let mut typed = text.clone().into_bytes();
                if std::mem::replace(&mut typed[at], *other) != *other {
                    assert_eq!(refused(&typed), Some(RecoveryError::Group(at / 5 + 1)), "{at}");
                }
            }
            let mut typed = text.clone().into_bytes();
            if at + 1 < typed.len() && at % 5 < 4 && typed[at] != typed[at + 1] {
                typed.swap(at, at + 1);
                assert_eq!(refused(&typed), Some(RecoveryError::Group(at / 5 + 1)), "{at}");
            }
        }
        let mut groups: Vec<&[u8]> = text.as_bytes().chunks(5).collect();
        groups.swap(2, 3);
        assert_eq!(refused(&groups.concat()), Some(RecoveryError::Group(3)));
        assert_eq!(refused(&text.as_bytes()[..60]), Some(RecoveryError::Length(60)));
        assert_eq!(refused(format!("{text}0").as_bytes()), Some(RecoveryError::Length(66)));
        assert_eq!(refused(b""), Some(RecoveryError::Length(0)));
    }
}
