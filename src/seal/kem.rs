//! The key pair behind a slot of the keyring: X-Wing, which is ML-KEM-768 and X25519 combined
//! (draft-connolly-cfrg-xwing-kem; FORMAT.md "Keyring").
//!
//! Owns the seed, its public key, and the encapsulation of a fresh secret to a public key. Whoever
//! has a public key can seal for its slot; only the seed opens. The only file that names `x_wing`.

use std::fmt;

use x_wing::{
    CIPHERTEXT_SIZE, Ciphertext, DecapsulationKeyRejectNonContrib, Decapsulator,
    ENCAPSULATION_KEY_SIZE, ENCAPSULATION_RANDOMNESS_SIZE, EncapsulationKey, KeyExport,
    TryDecapsulate,
};
use zeroize::{Zeroize, Zeroizing};

use super::derive::{InputKey, KEY, fill_random, same};
use super::secret::with_wiped_stack;

/// Bytes of the public key of a slot.
pub(super) const PUBLIC: usize = ENCAPSULATION_KEY_SIZE;
/// Bytes of an encapsulation.
pub(super) const ENCAPSULATION: usize = CIPHERTEXT_SIZE;

/// What the secret of a slot comes down to, whatever its kind: 32 bytes, X-Wing's decapsulation
/// key. In locked memory, wiped when the last clone is dropped.
#[derive(Clone)]
pub struct Seed(InputKey);

impl Seed {
    /// The seed with these bytes, which must be uniformly random or derived.
    pub fn from_bytes(bytes: &[u8; KEY]) -> Seed {
        with_wiped_stack(|| Seed(InputKey::from_bytes(bytes)))
    }

    /// Its bytes, for another process of this program.
    pub fn expose(&self) -> &[u8; KEY] {
        self.0.expose()
    }

    /// Its bytes, for tests that look for them where they must not be.
    #[doc(hidden)]
    pub fn expose_for_tests(&self) -> &[u8; KEY] {
        self.0.expose()
    }

    /// The public key that belongs to it. Costs making a key pair, some 50 µs.
    pub(super) fn public(&self) -> Vec<u8> {
        with_wiped_stack(|| self.pair().encapsulation_key().to_bytes().to_vec())
    }

    /// Whether `public` is its public key: whether this seed opens that slot.
    pub(super) fn fits(&self, public: &[u8]) -> bool {
        same(&self.public(), public)
    }

    /// The secret that an encapsulation to this seed's public key carries; `None` for one that no
    /// encapsulation gives. A forged one gives another secret, which opens nothing.
    pub(super) fn decapsulate(&self, encapsulation: &[u8]) -> Option<InputKey> {
        let encapsulation = Ciphertext::try_from(encapsulation).ok()?;
        with_wiped_stack(|| {
            let mut shared = self.pair().try_decapsulate(&encapsulation).ok()?;
            Some(taken(&mut shared))
        })
    }

    /// A key for what only the owner of this seed can have sealed.
    pub(super) fn derive(&self, label: &[u8]) -> InputKey {
        self.0.derive(&[label])
    }

    fn pair(&self) -> DecapsulationKeyRejectNonContrib {
        // Wiped by the library when it is dropped; the copies that it took it from are not.
        DecapsulationKeyRejectNonContrib::from(*self.0.expose())
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seed({KEY} bytes)")
    }
}

/// A fresh secret and its encapsulation to `public`; `None` if that is no public key.
pub(super) fn encapsulate(public: &[u8]) -> Option<(Vec<u8>, InputKey)> {
    let mut randomness = Zeroizing::new([0u8; ENCAPSULATION_RANDOMNESS_SIZE]);
    fill_random(&mut randomness[..]);
    encapsulate_with(public, &randomness)
}

/// [`encapsulate`] with given randomness. Never the same twice, but in known-answer tests.
fn encapsulate_with(
    public: &[u8],
    randomness: &[u8; ENCAPSULATION_RANDOMNESS_SIZE],
) -> Option<(Vec<u8>, InputKey)> {
    let public = EncapsulationKey::try_from(public).ok()?;
    let mut randomness = (*randomness).into();
    let (encapsulation, mut shared) = public.encapsulate_deterministic(&randomness);
    randomness.as_mut_slice().zeroize();
    Some((encapsulation.to_vec(), taken(&mut shared)))
}

/// Moves a shared secret into locked memory.
fn taken(shared: &mut x_wing::SharedKey) -> InputKey {
    let mut bytes = Zeroizing::new([0u8; KEY]);
    bytes.copy_from_slice(shared);
    shared.as_mut_slice().zeroize();
    InputKey::from_bytes(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn hex(value: &Value) -> Vec<u8> {
        let text = value.as_str().expect("a hex string");
        let byte = |i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex digits");
        (0..text.len()).step_by(2).map(byte).collect()
    }

    #[test]
    fn the_vectors_of_the_draft_give_the_published_results() {
        // Guards against an X-Wing of our own, and against a library that changes it: public key,
        // encapsulation and shared secret of each published vector.
        let text = include_str!("../../tests/vectors/xwing_draft_connolly.json");
        let vectors: Vec<Value> = serde_json::from_str(text).expect("the vector file is JSON");
        assert_eq!(vectors.len(), 3);
        for v in &vectors {
            let seed = Seed::from_bytes(&hex(&v["seed"]).try_into().expect("32 bytes"));
            assert_eq!(seed.public(), hex(&v["pk"]));
            let randomness = hex(&v["eseed"]).try_into().expect("64 bytes");
            let (encapsulation, shared) =
                encapsulate_with(&hex(&v["pk"]), &randomness).expect("a public key");
            assert_eq!(encapsulation, hex(&v["ct"]));
            assert_eq!(shared.expose()[..], hex(&v["ss"]));
            let opened = seed.decapsulate(&encapsulation).expect("an encapsulation");
            assert_eq!(opened.expose(), shared.expose());
        }
    }

    #[test]
    fn what_is_no_key_and_no_encapsulation_is_refused_without_a_panic() {
        // Guards against a forged keyring that stops the program: wrong lengths, coefficients out
        // of range, an X25519 share of low order, and an encapsulation to somebody else.
        let (seed, other) = (Seed::from_bytes(&[1; 32]), Seed::from_bytes(&[2; 32]));
        assert!(encapsulate(&[0xff; PUBLIC]).is_none());
        assert!(encapsulate(&seed.public()[1..]).is_none());
        assert!(seed.decapsulate(&[7; ENCAPSULATION - 1]).is_none());
        let (mut encapsulation, shared) = encapsulate(&seed.public()).expect("a public key");
        assert_eq!(seed.decapsulate(&encapsulation).unwrap().expose(), shared.expose());
        assert_ne!(other.decapsulate(&encapsulation).unwrap().expose(), shared.expose());
        encapsulation[ENCAPSULATION - 32..].fill(0);
        assert!(seed.decapsulate(&encapsulation).is_none());
        assert_eq!(format!("{seed:?}"), "Seed(32 bytes)");
    }
}
