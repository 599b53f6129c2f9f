//! The texts inside an envelope: maps of strings as JSON that any HTTP header carries, and what S3
//! makes of a header that is not ASCII.
//!
//! Pure. What cannot be read is an error, never a guess: a context that was read wrongly does not open.

use std::collections::BTreeMap;
use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// Strings by name.
pub type Strings = BTreeMap<String, String>;

/// One JSON object; each name may stand once in it.
struct Unique<V>(BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Names<V>(std::marker::PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for Names<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Unique<V>, M::Error> {
                let mut found = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, V>()? {
                    if found.insert(name, value).is_some() {
                        return Err(serde::de::Error::custom("a name stands in it twice"));
                    }
                }
                Ok(Unique(found))
            }
        }
        from.deserialize_map(Names(std::marker::PhantomData))
    }
}

/// A JSON object of strings; `None` if it is anything else.
pub(super) fn strings(json: &str) -> Option<Strings> {
    serde_json::from_str::<Unique<String>>(json).ok().map(|unique| unique.0)
}

/// The members of a JSON object that are strings, and the names of the others.
pub(super) fn members(json: &[u8]) -> Option<(Strings, Vec<String>)> {
    let unique = serde_json::from_slice::<Unique<serde_json::Value>>(json).ok()?;
    let (mut strings, mut others) = (Strings::new(), Vec::new());
    for (name, value) in unique.0 {
        match value {
            serde_json::Value::String(text) => drop(strings.insert(name, text)),
            _ => others.push(name),
        }
    }
    Some((strings, others))
}

/// JSON of printable ASCII, which every header takes as it is.
pub(super) fn ascii_json(strings: &Strings) -> String {
    let json = serde_json::to_string(strings).expect("strings are JSON");
    let mut ascii = String::with_capacity(json.len());
    for c in json.chars() {
        if matches!(c, ' '..='~') {
            ascii.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            ascii += &format!("\\u{unit:04x}");
        }
    }
    ascii
}

/// What a client put into a header, from what S3 shows of it: S3 takes the UTF-8 of a header that is
/// not ASCII for Latin-1 and shows that in the encoded words of RFC 2047, so that it is encoded twice.
pub(super) fn from_header(shown: &str) -> String {
    // JSON begins with a brace, so that nothing is taken for a word that is none.
    if !shown.starts_with("=?") {
        return shown.to_owned();
    }
    let Some(once) = from_encoded_words(shown) else { return shown.to_owned() };
    let latin: Option<Vec<u8>> = once.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    latin.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or(once)
}

/// RFC 2047, section 2: `=?charset?Q or B?text?=`, in UTF-8; blanks between two such words are no
/// part of the text. `None` where a word is of another charset or malformed.
fn from_encoded_words(shown: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(shown.len()), shown);
    let mut after_word = false;
    while let Some(at) = rest.find("=?") {
        let (before, word) = rest.split_at(at);
        if !after_word || !before.bytes().all(|b| b.is_ascii_whitespace()) {
            bytes.extend_from_slice(before.as_bytes());
        }
        let mut fields = word[2..].splitn(3, '?');
        let (charset, encoding, tail) = (fields.next()?, fields.next()?, fields.next()?);
        let (text, after) = tail.split_once("?=")?;
        if !charset.eq_ignore_ascii_case("utf-8") && !charset.eq_ignore_ascii_case("us-ascii") {
            return None;
        }
        match encoding {
            "B" | "b" => bytes.extend(STANDARD.decode(text).ok()?),
            "Q" | "q" => bytes.extend(from_q(text)?),
            _ => return None,
        }
        (rest, after_word) = (after, true);
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok()
}

/// The "Q" encoding: `_` is a blank, `=41` a byte.
fn from_q(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'_' => b' ',
            b'=' => {
                let digit = |b: u8| char::from(b).to_digit(16);
                let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
                (high * 16 + low) as u8
            }
            byte => byte,
        });
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_stands_twice_is_refused() {
        // Guards against two readers that see different values in one instruction file.
        assert!(strings(r#"{"a":"1","b":"2"}"#).is_some());
        for bad in [r#"{"a":"1","a":"2"}"#, r#"{"a":1}"#, r#"["a"]"#, r#"{"a":"1"} x"#, "", "null"]
        {
            assert_eq!(strings(bad), None, "{bad}");
        }
        assert!(members(br#"{"a":"1","a":"2"}"#).is_none());
        let (strings, others) = members(br#"{"a":"1","n":5}"#).unwrap();
        assert_eq!((strings.len(), others), (1, vec!["n".to_owned()]));
    }

    #[test]
    fn every_text_goes_through_ascii_and_back() {
        // Guards against a header that a server refuses or changes.
        let texts = ["", "plain", "\"quoted\" \\ back", "Grüße 世界 🔐", "tab\tline\n\u{7f}\u{85}"];
        let map: Strings = texts.iter().map(|t| (format!("k{t}"), t.to_string())).collect();
        let json = ascii_json(&map);
        assert!(json.bytes().all(|b| (b' '..=b'~').contains(&b)), "{json}");
        assert_eq!(strings(&json), Some(map));
    }

    #[test]
    fn what_s3_encoded_twice_is_read() {
        // Guards against contexts of the Java client that cannot be read back from S3: UTF-8 of "ü",
        // C3 BC, taken for Latin-1 and shown as UTF-8 in encoded words.
        let twice = "=?UTF-8?Q?{\"k\":\"=C3=83=C2=BC\"}?=";
        assert_eq!(from_header(twice), "{\"k\":\"ü\"}");
        let base = format!("=?utf-8?B?{}?=", STANDARD.encode("{\"k\":\"Ã¼\"}"));
        assert_eq!(from_header(&base), "{\"k\":\"ü\"}");
        // Encoded once, as moto does, and in words that cut a character.
        let once = format!("=?UTF-8?B?{}?=", STANDARD.encode("{\"k\":\"世界ü\"}"));
        assert_eq!(from_header(&once), "{\"k\":\"世界ü\"}");
        assert_eq!(from_header("=?UTF-8?Q?a=C3?= =?UTF-8?Q?=BCb_c?="), "aüb c");
        for plain in
            ["{}", "{\"a\":\"=?UTF-8?Q?b?=\"}", "=?x?Q?a?=", "=?UTF-8?B?!!?=", "=?UTF-8?Q?=4?="]
        {
            assert_eq!(from_header(plain), plain, "left as it is");
        }
    }
}
