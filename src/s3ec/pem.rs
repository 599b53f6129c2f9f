//! Key files: PEM to DER, and PKCS #1 into the structures that the cryptographic library reads.
//!
//! Pure. Source: RFC 7468 (PEM), RFC 8017 A.1 (PKCS #1), RFC 5208 and RFC 5280.

use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

/// AlgorithmIdentifier: rsaEncryption, NULL.
const RSA: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
/// INTEGER 0.
const VERSION: [u8; 3] = [0x02, 0x01, 0x00];
const SEQUENCE: u8 = 0x30;
const OCTET_STRING: u8 = 0x04;
const BIT_STRING: u8 = 0x03;
/// First byte of an element that is a long SEQUENCE: what DER files begin with.
const DER: u8 = SEQUENCE;

type Der = Zeroizing<Vec<u8>>;

/// A private key as PKCS #8.
///
/// # Errors
/// Why it is none.
pub(super) fn private_key(bytes: &[u8]) -> Result<Der, &'static str> {
    if bytes.first() == Some(&DER) {
        return Ok(if is_pkcs1(bytes) { pkcs8(bytes) } else { Zeroizing::new(bytes.to_vec()) });
    }
    let (label, der) = block(bytes, "PRIVATE KEY")?;
    match label.as_str() {
        "PRIVATE KEY" => Ok(der),
        "RSA PRIVATE KEY" => Ok(pkcs8(&der)),
        "ENCRYPTED PRIVATE KEY" => Err("it is encrypted"),
        _ => Err("it is of another kind"),
    }
}

/// A public key as SubjectPublicKeyInfo.
///
/// # Errors
/// Why it is none.
pub(super) fn public_key(bytes: &[u8]) -> Result<Der, &'static str> {
    if bytes.first() == Some(&DER) {
        return Ok(if is_integer_first(bytes) {
            spki(bytes)
        } else {
            Zeroizing::new(bytes.to_vec())
        });
    }
    let (label, der) = block(bytes, "PUBLIC KEY")?;
    match label.as_str() {
        "PUBLIC KEY" => Ok(der),
        "RSA PUBLIC KEY" => Ok(spki(&der)),
        _ => Err("it is of another kind"),
    }
}

/// The first block whose label ends in `kind`, and its label.
fn block(bytes: &[u8], kind: &str) -> Result<(String, Der), &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is neither PEM nor DER")?;
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        let (label, after) = after.split_once("-----").ok_or("it is cut short")?;
        let end = format!("-----END {label}-----");
        let (body, after) = after.split_once(&end).ok_or("it is cut short")?;
        rest = after;
        if !label.ends_with(kind) {
            continue;
        }
        if body.contains("ENCRYPTED") {
            return Err("it is encrypted");
        }
        let body: Zeroizing<String> = Zeroizing::new(body.split_whitespace().collect());
        let der = STANDARD.decode(body.as_bytes()).map_err(|_| "it is not base64 inside")?;
        return Ok((label.to_owned(), Zeroizing::new(der)));
    }
    Err("it is neither PEM nor DER")
}

/// Whether a private key is PKCS #1: behind the version it has an INTEGER, PKCS #8 a SEQUENCE.
fn is_pkcs1(der: &[u8]) -> bool {
    let inner = inside(der).and_then(|inner| inner.strip_prefix(&VERSION));
    inner.and_then(|rest| rest.first()) == Some(&0x02)
}

/// Whether a public key is PKCS #1, which begins with the modulus.
fn is_integer_first(der: &[u8]) -> bool {
    inside(der).and_then(|rest| rest.first()) == Some(&0x02)
}

/// What a SEQUENCE holds.
fn inside(der: &[u8]) -> Option<&[u8]> {
    let rest = der.strip_prefix(&[SEQUENCE])?;
    let (first, rest) = rest.split_first()?;
    let more = if *first & 0x80 == 0 { 0 } else { usize::from(first & 0x7f) };
    rest.get(more..)
}

fn pkcs8(pkcs1: &[u8]) -> Der {
    let octets = element(OCTET_STRING, &[pkcs1]);
    element(SEQUENCE, &[&VERSION, &RSA, &octets])
}

fn spki(pkcs1: &[u8]) -> Der {
    let bits = element(BIT_STRING, &[&[0], pkcs1]);
    element(SEQUENCE, &[&RSA, &bits])
}

/// One DER element.
fn element(tag: u8, parts: &[&[u8]]) -> Der {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Zeroizing::new(Vec::with_capacity(len + 6));
    out.push(tag);
    match len {
        0..0x80 => out.push(len as u8),
        _ => {
            let bytes = len.to_be_bytes();
            let used = &bytes[bytes.iter().take_while(|b| **b == 0).count()..];
            out.push(0x80 | used.len() as u8);
            out.extend_from_slice(used);
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::garbled;

    #[test]
    fn no_file_of_a_key_makes_a_panic() {
        // Guards against a length that leads beyond the end, and a block without one.
        let der =
            spki(&element(SEQUENCE, &[&element(0x02, &[&[5; 200]]), &element(0x02, &[&[3]])]));
        let pem = |label| {
            let body = STANDARD.encode(&der[..]);
            format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
        };
        let (public, private) = (pem("RSA PUBLIC KEY"), pem("PRIVATE KEY"));
        let words: [&[u8]; 5] = [b"-----", b"-----BEGIN ", b"RSA ", &[0x30, 0xff], &[0x80]];
        garbled(&[&der, public.as_bytes(), private.as_bytes()], &words, |bytes| {
            for der in [public_key(bytes), private_key(bytes)].into_iter().flatten() {
                let _ = (is_pkcs1(&der), is_integer_first(&der));
            }
        });
    }
}
