//! Whether a file is what it would be made into: what files remember of their objects, and hashes.

use std::path::Path;

use md5::{Digest, Md5};

use super::report::Trouble;
use super::tree::{Stat, Tree};
use crate::base::{Timestamp, hex, read_up_to};
use crate::store::s3::Listed;

/// The xattr that says which object a file came from, and what the file was then.
pub const ORIGIN: &str = "user.sealfs.origin";
/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// ETag and size of the object, then size and time of the file that was made of it.
pub fn origin(object: &Listed, file_size: u64, mtime: Timestamp) -> String {
    let Listed { e_tag, size, .. } = object;
    format!("1 {e_tag} {size} {file_size} {}.{:09}", mtime.secs, mtime.nanos)
}

/// The same of a directory.
pub fn origin_of_dir(object: &Listed, mtime: Timestamp) -> String {
    origin(object, 0, mtime)
}

/// What follows [`origin`] where metadata and tags of the object came along.
pub const WITH_METADATA: &str = " metadata";

/// Whether metadata and tags of its object came along with a file.
pub fn has_metadata(said: Option<&[u8]>) -> bool {
    said.is_some_and(|said| said.ends_with(WITH_METADATA.as_bytes()))
}

/// Whether what is at a path says that it came from what `origin` says.
pub fn is_origin(said: &[u8], origin: &str) -> bool {
    said.strip_suffix(WITH_METADATA.as_bytes()).unwrap_or(said) == origin.as_bytes()
}

/// Whether a file is what the object was made into, and has not been changed since; or, if it was
/// not made by an import, has its size and time.
pub fn is_unchanged(stat: &Stat, said: Option<&[u8]>, object: &Listed) -> bool {
    match said {
        Some(said) if is_origin(said, &origin(object, stat.size, stat.mtime)) => true,
        _ => {
            let put = Timestamp::from(object.modified);
            // Whoever made it may have kept less than nanoseconds.
            said.is_none() && stat.size == object.size && stat.mtime.secs == put.secs
        }
    }
}

/// Whether the ETag is the MD5 of the file.
pub fn is_md5_of(tree: &Tree, path: &Path, object: &Listed) -> Result<bool, Trouble> {
    if object.e_tag.len() != 32 || tree.stat(path)?.is_none_or(|stat| stat.size != object.size) {
        return Ok(false);
    }
    Ok(md5_of(tree, path)? == object.e_tag.to_ascii_lowercase())
}

/// The MD5 of a file, in hexadecimal.
///
/// # Errors
/// Those of opening and reading it.
pub fn md5_of(tree: &Tree, path: &Path) -> Result<String, Trouble> {
    let mut hash = Md5::new();
    each_piece(tree, path, |piece| hash.update(piece))?;
    Ok(hex(&hash.finalize()))
}

/// Hands the bytes of a file to `take`, in pieces.
fn each_piece(tree: &Tree, path: &Path, mut take: impl FnMut(&[u8])) -> Result<(), Trouble> {
    let file = tree.read(path)?;
    let (mut buffer, mut at) = (vec![0; PIECE], 0);
    loop {
        match read_up_to(&file, &mut buffer, at)? {
            0 => return Ok(()),
            n => {
                take(&buffer[..n]);
                at += n as u64;
            }
        }
    }
}

/// Whether two files of a tree have the same contents.
pub fn same_contents(tree: &Tree, one: &Path, other: &Path) -> Result<bool, Trouble> {
    let size = |path| Ok::<_, Trouble>(tree.stat(path)?.map(|stat| stat.size));
    if size(one)? != size(other)? {
        return Ok(false);
    }
    let hash = |path| -> Result<_, Trouble> {
        let mut hash = sha2::Sha256::new();
        each_piece(tree, path, |piece| sha2::Digest::update(&mut hash, piece))?;
        Ok(sha2::Digest::finalize(hash))
    };
    Ok(hash(one)? == hash(other)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn a_file_is_left_alone_only_if_neither_it_nor_its_object_has_changed() {
        // Guards against an import that fetches everything again, and against one that misses a new
        // version of the same length.
        let object = Listed {
            key: "k".into(),
            size: 5,
            modified: UNIX_EPOCH + Duration::from_secs(100),
            e_tag: "aa".into(),
        };
        let tmp = tempfile::tempdir().expect("a directory");
        std::fs::write(tmp.path().join("f"), "hello").expect("writes");
        let tree = Tree::open(tmp.path()).expect("opens");
        let at = Timestamp { secs: 7, nanos: 9 };
        tree.set_times(crate::exchange::spot::Spot::At(Path::new("f")), None, at).expect("sets");
        let stat = tree.stat(Path::new("f")).expect("looks").expect("is there");
        let said = origin(&object, 5, at);
        assert!(is_unchanged(&stat, Some(said.as_bytes()), &object));
        let more = format!("{said}{WITH_METADATA}");
        assert!(is_unchanged(&stat, Some(more.as_bytes()), &object));
        assert!(has_metadata(Some(more.as_bytes())) && !has_metadata(Some(said.as_bytes())));
        let newer = Listed { e_tag: "bb".into(), ..object.clone() };
        assert!(!is_unchanged(&stat, Some(said.as_bytes()), &newer));
        let touched = Stat { mtime: Timestamp { secs: 8, nanos: 9 }, ..stat };
        assert!(!is_unchanged(&touched, Some(said.as_bytes()), &object));
        assert!(!is_unchanged(&stat, None, &object));
        let copied = Stat { mtime: Timestamp { secs: 100, nanos: 0 }, ..stat };
        assert!(is_unchanged(&copied, None, &object));
    }
}
