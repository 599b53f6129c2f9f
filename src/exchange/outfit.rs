//! What a file gets beside its contents: what the metadata of its object say, and what an import remembers.

use std::ffi::OsStr;

use super::attributes::{Attributes, What, is_understood};
use super::bucket::{Bucket, patiently};
use super::compare::{ORIGIN, WITH_METADATA, origin};
use super::report::{Run, Trouble};
use super::spot::Spot;
use super::tree::Tree;
use crate::base::Timestamp;
use crate::s3ec::is_own_key;
use crate::store::class;
use crate::store::s3::{About, Listed};

/// The xattr that says which instruction file the envelope of a file's object was in.
pub const INSTRUCTION: &str = "user.sealfs.instruction";

/// What becomes of a file.
pub struct Outfit {
    /// ETag of the instruction file that it took to open the object.
    pub instruction: Option<String>,
    /// What the metadata say.
    pub attributes: Attributes,
    /// Its time: of the metadata, else when the object was put.
    pub mtime: Timestamp,
    /// Metadata, headers and tags, where they are asked for.
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// What it remembers of its object.
    pub origin: Option<String>,
}

/// Which answer told about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// GetObject, which counts tags.
    Get,
    /// HeadObject, which on many servers does not.
    Head,
}

impl Outfit {
    /// What is made of the metadata of an object, tags included where they are asked for.
    ///
    /// # Errors
    /// The store is away.
    pub async fn of(
        bucket: &Bucket,
        run: &Run,
        object: &Listed,
        about: &About,
        told: Told,
    ) -> Result<Outfit, Trouble> {
        let attributes = Attributes::of(&about.metadata);
        let put = about.modified.unwrap_or(object.modified);
        let mtime = attributes.mtime.unwrap_or_else(|| put.into());
        let mut xattrs = Vec::new();
        let text = |name: String, value: &String| (name, value.clone().into_bytes());
        if run.options.metadata {
            let own = about.metadata.iter().filter(|(name, _)| is_own(name));
            xattrs.extend(own.map(|(name, value)| text(format!("user.s3.meta.{name}"), value)));
            let said = about.headers.iter().filter(|(_, value)| !is_default_type(value));
            xattrs.extend(said.map(|(name, value)| text(format!("user.s3.{name}"), value)));
            if about.tags.map_or(told == Told::Head, |count| count > 0) {
                xattrs.extend(tags(bucket, run, &object.key).await?);
            }
        } else {
            let left = about.metadata.keys().filter(|name| is_own(name)).count();
            if left > 0 || about.tags.is_some_and(|count| count > 0) {
                run.lost("files with metadata or tags (--metadata keeps them)", 1);
            }
        }
        Ok(Outfit { instruction: None, attributes, mtime, xattrs, origin: None })
    }

    /// Notes what a file of `size` bytes, or a directory, was made of.
    pub fn remember(&mut self, run: &Run, object: &Listed, size: u64) {
        let with = if run.options.metadata { WITH_METADATA } else { "" };
        self.origin = Some(format!("{}{with}", origin(object, size, self.mtime)));
    }

    /// Owner, permissions, xattrs, times, in the order in which none undoes another.
    ///
    /// # Errors
    /// Those of the calls; a metadata that no xattr can hold is counted.
    pub fn put_on(
        &self,
        tree: &Tree,
        run: &Run,
        spot: Spot<'_>,
        is_root: bool,
    ) -> Result<(), Trouble> {
        let (attributes, is_link) = (&self.attributes, self.attributes.what == What::Symlink);
        if is_root && (attributes.uid.is_some() || attributes.gid.is_some()) {
            let keep = u32::MAX; // -1: as it is
            let (uid, gid) = (attributes.uid.unwrap_or(keep), attributes.gid.unwrap_or(keep));
            tree.set_owner(spot, uid, gid)?;
        }
        if !is_link {
            // Before the file is read-only.
            self.put_xattrs(tree, run, spot)?;
        }
        if let (Some(perm), false) = (attributes.perm, is_link) {
            tree.set_perm(spot, perm)?;
        }
        tree.set_times(spot, attributes.atime, self.mtime)?;
        Ok(())
    }

    /// Extended attributes alone.
    ///
    /// # Errors
    /// As [`Outfit::put_on`].
    pub fn put_xattrs(&self, tree: &Tree, run: &Run, spot: Spot<'_>) -> Result<(), Trouble> {
        for (name, value) in self.attributes.xattrs.iter().chain(&self.xattrs) {
            if tree.set_xattr(spot, OsStr::new(name), Some(value)).is_err() {
                run.lost("metadata that no xattr can hold", 1);
            }
        }
        let own = [(INSTRUCTION, &self.instruction), (ORIGIN, &self.origin)];
        for (name, value) in own {
            if let Some(value) = value {
                tree.set_xattr(spot, OsStr::new(name), Some(value.as_bytes()))?;
            }
        }
        Ok(())
    }
}

/// The tags of an object as xattrs. A server that does not know them, or does not show them, is no reason to
/// do without the file.
async fn tags(bucket: &Bucket, run: &Run, key: &str) -> Result<Vec<(String, Vec<u8>)>, Trouble> {
    match patiently(run, || bucket.store.tags_of(key)).await {
        Ok(tags) => Ok(tags
            .into_iter()
            .map(|(name, value)| (format!("user.s3.tag.{name}"), value.into_bytes()))
            .collect()),
        Err(e) if class(&e).is_retryable() => Err(e.into()),
        Err(e) => {
            log::info!("tags are left out: {e}");
            run.lost("files whose tags the server does not show", 1);
            Ok(Vec::new())
        }
    }
}

/// Whether metadata say something that a file has no other place for.
fn is_own(name: &str) -> bool {
    !is_understood(name) && !is_own_key(name)
}

/// What servers say of objects that nobody said anything of.
fn is_default_type(content_type: &str) -> bool {
    matches!(content_type, "binary/octet-stream" | "application/octet-stream")
}
