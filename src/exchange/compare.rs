//! Whether a file is what it would be made into: what files remember of their objects, hashes, and
//! what is left over.

use std::path::Path;

use md5::{Digest, Md5};

use super::report::{Event, Run, Trouble};
use super::tree::{Stat, Tree};
use crate::base::{Timestamp, hex};
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

/// Whether a file is what the object was made into, and has not been changed since; or, if it was
/// not made by an import, has its size and time.
pub fn is_unchanged(stat: &Stat, said: Option<&[u8]>, object: &Listed) -> bool {
    let mine = origin(object, stat.size, stat.mtime);
    match said {
        Some(said) if said == mine.as_bytes() => true,
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
    let mut hash = Md5::new();
    each_piece(tree, path, |piece| hash.update(piece))?;
    Ok(hex(&hash.finalize()) == object.e_tag.to_ascii_lowercase())
}

fn each_piece(tree: &Tree, path: &Path, mut take: impl FnMut(&[u8])) -> Result<(), Trouble> {
    use std::io::Read;
    let mut file = tree.read(path)?;
    let mut buffer = vec![0; PIECE];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => take(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
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

/// Deletes what `keep` does not keep and the filter takes; directories that are empty then.
pub fn delete_rest(
    tree: &Tree,
    run: &Run,
    keep: &dyn Fn(&Path, bool) -> bool,
) -> Result<(), Trouble> {
    /// Whether nothing is left in it.
    fn clear(
        tree: &Tree,
        run: &Run,
        keep: &dyn Fn(&Path, bool) -> bool,
        dir: &Path,
    ) -> Result<bool, Trouble> {
        let mut is_empty = true;
        for name in tree.list(dir)? {
            let path = dir.join(&name);
            let Some(stat) = tree.stat(&path)? else { continue };
            let shown = path.to_string_lossy();
            let goes = match stat.is_dir() {
                true => clear(tree, run, keep, &path)? && run.options.filter.takes_dir(&shown),
                false => run.options.filter.takes(&shown),
            };
            if !goes || keep(&path, stat.is_dir()) {
                is_empty = false;
                continue;
            }
            match run.options.dry_run {
                true => run.say(Event::Would("delete", shown.into_owned())),
                false => tree.remove(&path, stat.is_dir())?,
            }
            run.note(|report| report.deleted += 1);
        }
        Ok(is_empty)
    }
    clear(tree, run, keep, Path::new("")).map(drop)
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
        tree.set_times(Path::new("f"), None, at).expect("sets");
        let stat = tree.stat(Path::new("f")).expect("looks").expect("is there");
        let said = origin(&object, 5, at);
        assert!(is_unchanged(&stat, Some(said.as_bytes()), &object));
        let newer = Listed { e_tag: "bb".into(), ..object.clone() };
        assert!(!is_unchanged(&stat, Some(said.as_bytes()), &newer));
        let touched = Stat { mtime: Timestamp { secs: 8, nanos: 9 }, ..stat };
        assert!(!is_unchanged(&touched, Some(said.as_bytes()), &object));
        assert!(!is_unchanged(&stat, None, &object));
        let copied = Stat { mtime: Timestamp { secs: 100, nanos: 0 }, ..stat };
        assert!(is_unchanged(&copied, None, &object));
    }
}
