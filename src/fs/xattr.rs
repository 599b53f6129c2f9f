//! Extended attributes and POSIX access control lists.
//!
//! ACLs are the attributes `system.posix_acl_access` and `system.posix_acl_default` in the
//! kernel's xattr format (`linux/posix_acl_xattr.h`). The kernel checks access by them; keeping
//! the mode and the ACL in step, and inheriting defaults, is the file system's part
//! (`acl(5)`).

use std::sync::Arc;

use bytes::Bytes;

use super::inode::{SETGID, changed};
use super::rights::Rights;
use super::{Attempt, Caller, Fs, FsError, State, Step, XattrMode};
use crate::base::Ino;
use crate::commit::{Batch, Lookup};
use crate::meta::{Inode, Kind, XATTR_NAME_MAX, XATTR_VALUE_MAX, keys};

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
const TRUSTED: &[u8] = b"trusted.";
const CAPABILITY: &[u8] = b"security.capability";

/// What a new inode gets from its directory's default ACL and the umask.
pub(super) struct Inherited {
    pub(super) perm: u16,
    pub(super) xattrs: Vec<(&'static [u8], Bytes)>,
}

/// Namespaces whose names are free (xattr(7)); who may use them is for Linux to decide.
const NAMESPACES: [&[u8]; 3] = [b"user.", TRUSTED, b"security."];

/// Names as other file systems of Linux take them: in `system.` are those that Linux gives a
/// meaning, and nobody's rights are asked there; so a name that nobody defined is refused.
fn check_name(name: &[u8]) -> Result<(), FsError> {
    if name.is_empty() || name.len() > XATTR_NAME_MAX {
        return Err(FsError::Range);
    }
    if [ACL_ACCESS, ACL_DEFAULT].contains(&name) {
        return Ok(());
    }
    match NAMESPACES.iter().find_map(|space| name.strip_prefix(*space)) {
        Some(b"") => Err(FsError::Invalid),
        Some(_) => Ok(()),
        None => Err(FsError::Unsupported),
    }
}

impl Fs {
    /// The attribute's row; `Ok(None)`: there is none.
    fn xattr(&self, ino: Ino, inode: &Inode, name: &[u8]) -> Attempt<Option<Bytes>> {
        if inode.xattrs == 0 {
            return Ok(None);
        }
        let key = keys::xattr(ino, name);
        match self.view.get_now(&key) {
            Lookup::Hit(value) => Ok(value),
            Lookup::Miss => Err(Step::Row(key)),
        }
    }

    fn put_xattr(
        &self,
        batch: &mut Batch,
        ino: Ino,
        inode: &mut Inode,
        name: &[u8],
        value: Bytes,
    ) -> Attempt<()> {
        let key = keys::xattr(ino, name);
        if self.xattr(ino, inode, name)?.is_some() {
            batch.put(key, value);
        } else {
            inode.xattrs += 1;
            // Not `put_fresh`: the count, not a look-up, may have said that it is absent.
            batch.put(key, value);
        }
        Ok(())
    }

    fn delete_xattr(
        &self,
        batch: &mut Batch,
        ino: Ino,
        inode: &mut Inode,
        name: &[u8],
    ) -> Attempt<bool> {
        if self.xattr(ino, inode, name)?.is_none() {
            return Ok(false);
        }
        inode.xattrs = inode.xattrs.saturating_sub(1);
        batch.delete(keys::xattr(ino, name));
        Ok(true)
    }

    /// Drops file capabilities, as Linux does when contents or ownership change.
    pub(super) fn drop_capability(
        &self,
        batch: &mut Batch,
        ino: Ino,
        inode: &mut Inode,
    ) -> Attempt<()> {
        self.delete_xattr(batch, ino, inode, CAPABILITY).map(|_| ())
    }

    /// `setxattr(2)`.
    ///
    /// # Errors
    /// [`FsError::Exists`] and [`FsError::NoAttr`] as `mode` says, [`FsError::Unsupported`] for
    /// a namespace that Linux does not have, [`FsError::Range`] for a name and
    /// [`FsError::ArgListTooBig`] for a value that is too long, [`FsError::Invalid`] for a
    /// malformed ACL.
    pub fn setxattr(
        self: &Arc<Self>,
        ino: Ino,
        name: Vec<u8>,
        value: Vec<u8>,
        mode: XattrMode,
    ) -> impl Future<Output = Result<(), FsError>> + Send + 'static {
        let value = Bytes::from(value);
        self.clone().transact(move |fs, state| {
            check_name(&name)?;
            if value.len() > XATTR_VALUE_MAX {
                return Err(FsError::ArgListTooBig.into());
            }
            let mut inode = fs.inode(ino)?;
            let exists = fs.xattr(ino, &inode, &name)?.is_some();
            if mode.create && exists {
                return Err(FsError::Exists.into());
            }
            if mode.replace && !exists {
                return Err(FsError::NoAttr.into());
            }
            let mut batch = Batch::default();
            match &name[..] {
                ACL_ACCESS => {
                    let acl = Acl::parse(&value)?;
                    inode.perm = inode.perm & !0o777 | acl.mode();
                    if mode.kill_sgid {
                        inode.perm &= !SETGID;
                    }
                    if acl.is_extended() {
                        fs.put_xattr(&mut batch, ino, &mut inode, &name, value.clone())?;
                    } else {
                        fs.delete_xattr(&mut batch, ino, &mut inode, &name)?;
                    }
                }
                ACL_DEFAULT => {
                    if inode.kind != Kind::Dir {
                        return Err(FsError::Access.into());
                    }
                    Acl::parse(&value)?;
                    fs.put_xattr(&mut batch, ino, &mut inode, &name, value.clone())?;
                }
                _ => fs.put_xattr(&mut batch, ino, &mut inode, &name, value.clone())?,
            }
            fs.finish_xattr(state, batch, ino, inode)
        })
    }

    fn finish_xattr(
        &self,
        state: &mut State,
        mut batch: Batch,
        ino: Ino,
        mut inode: Inode,
    ) -> Attempt<()> {
        changed(&mut inode, self.clock.now());
        batch.put(keys::inode(ino), inode.encode());
        self.submit(state, batch, &[])?;
        Ok(())
    }

    /// `getxattr(2)`: the value.
    ///
    /// # Errors
    /// [`FsError::NoAttr`]; for a name that cannot be set, as [`Fs::setxattr`].
    pub fn getxattr(
        self: &Arc<Self>,
        ino: Ino,
        name: Vec<u8>,
    ) -> impl Future<Output = Result<Bytes, FsError>> + Send + 'static {
        self.clone().consult(move |fs| {
            check_name(&name)?;
            let inode = fs.inode(ino)?;
            Ok(fs.xattr(ino, &inode, &name)?.ok_or(FsError::NoAttr)?)
        })
    }

    /// `listxattr(2)`: the names. Those of a namespace that is none, which older versions took,
    /// are not among them: nobody could read them. Nor are `trusted.` ones where `caller` may
    /// not know of them.
    pub fn listxattr(
        self: &Arc<Self>,
        caller: Caller,
        ino: Ino,
    ) -> impl Future<Output = Result<Vec<Vec<u8>>, FsError>> + Send + 'static {
        let fs = self.clone();
        async move {
            let inode = fs.clone().consult(move |fs| fs.inode(ino)).await?;
            let mut names = Vec::new();
            if inode.xattrs == 0 {
                return Ok(names);
            }
            let (mut start, end) = keys::xattrs(ino);
            loop {
                let page = fs.view.page(&start, &end, 256, true).await?;
                names.extend(
                    page.rows
                        .iter()
                        .filter_map(|(key, _)| keys::xattr_of(key))
                        .filter(|name| check_name(name).is_ok())
                        .map(<[u8]>::to_vec),
                );
                match page.next {
                    Some(next) => start = next,
                    None => break,
                }
            }
            let is_trusted = |name: &Vec<u8>| name.starts_with(TRUSTED);
            if names.iter().any(is_trusted) && !Rights::of(caller).sees_trusted() {
                names.retain(|name| !is_trusted(name));
            }
            Ok(names)
        }
    }

    /// `removexattr(2)`. Removing an ACL that is not there succeeds, as on other Linux file
    /// systems.
    ///
    /// # Errors
    /// [`FsError::NoAttr`]; for a name that cannot be set, as [`Fs::setxattr`].
    pub fn removexattr(
        self: &Arc<Self>,
        ino: Ino,
        name: Vec<u8>,
    ) -> impl Future<Output = Result<(), FsError>> + Send + 'static {
        self.clone().transact(move |fs, state| {
            check_name(&name)?;
            let mut inode = fs.inode(ino)?;
            let mut batch = Batch::default();
            if !fs.delete_xattr(&mut batch, ino, &mut inode, &name)? {
                let is_acl = [ACL_ACCESS, ACL_DEFAULT].contains(&&name[..]);
                return if is_acl { Ok(()) } else { Err(FsError::NoAttr.into()) };
            }
            fs.finish_xattr(state, batch, ino, inode)
        })
    }

    /// Permission bits and ACLs of a new inode of `kind` in `parent`: from the directory's
    /// default ACL if it has one, else `perm` without `umask` (`acl(5)`, "OBJECT CREATION AND
    /// DEFAULT ACLs").
    pub(super) fn inherited_acl(
        &self,
        parent: Ino,
        dir: &Inode,
        kind: Kind,
        perm: u16,
        umask: u32,
    ) -> Attempt<Inherited> {
        if kind == Kind::Symlink {
            return Ok(Inherited { perm, xattrs: Vec::new() });
        }
        let Some(default) = self.xattr(parent, dir, ACL_DEFAULT)? else {
            let perm = perm & !(umask as u16 & 0o777);
            return Ok(Inherited { perm, xattrs: Vec::new() });
        };
        let mut xattrs: Vec<(&'static [u8], Bytes)> = Vec::new();
        let mut acl = Acl::parse(&default)?;
        acl.limit_to(perm);
        if acl.is_extended() {
            xattrs.push((ACL_ACCESS, acl.encode()));
        }
        if kind == Kind::Dir {
            xattrs.push((ACL_DEFAULT, default));
        }
        Ok(Inherited { perm: perm & !0o777 | acl.mode(), xattrs })
    }

    /// Brings the access ACL in step with a mode that `chmod` has set.
    pub(super) fn chmod_acl(&self, batch: &mut Batch, ino: Ino, inode: &Inode) -> Attempt<()> {
        if let Some(value) = self.xattr(ino, inode, ACL_ACCESS)? {
            let mut acl = Acl::parse(&value)?;
            acl.chmod(inode.perm);
            batch.put(keys::xattr(ino, ACL_ACCESS), acl.encode());
        }
        Ok(())
    }
}

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// An access control list: entries of tag, permissions and id.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Acl(Vec<(u16, u16, u32)>);

impl Acl {
    fn parse(value: &[u8]) -> Result<Acl, FsError> {
        let (version, entries) = value.split_first_chunk::<4>().ok_or(FsError::Invalid)?;
        if u32::from_le_bytes(*version) != VERSION || entries.len() % 8 != 0 {
            return Err(FsError::Invalid);
        }
        let entry = |e: &[u8]| {
            let half = |at: usize| u16::from_le_bytes([e[at], e[at + 1]]);
            (half(0), half(2), u32::from_le_bytes([e[4], e[5], e[6], e[7]]))
        };
        let acl = Acl(entries.chunks_exact(8).map(entry).collect());
        let count = |tag| acl.0.iter().filter(|e| e.0 == tag).count();
        let known = USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER;
        let sound = acl.0.iter().all(|e| e.0.count_ones() == 1 && e.0 & known != 0 && e.1 <= 7);
        let one_each = [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|t| count(*t) == 1);
        let masked = count(MASK) == 1 || count(MASK) == 0 && count(USER) + count(GROUP) == 0;
        if sound && one_each && masked { Ok(acl) } else { Err(FsError::Invalid) }
    }

    fn encode(&self) -> Bytes {
        let mut out = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in &self.0 {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&perm.to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out.into()
    }

    fn get(&self, tag: u16) -> Option<u16> {
        self.0.iter().find(|e| e.0 == tag).map(|e| e.1)
    }

    fn entry(&mut self, tag: u16) -> Option<&mut u16> {
        self.0.iter_mut().find(|e| e.0 == tag).map(|e| &mut e.1)
    }

    /// Whether it says more than a mode can.
    fn is_extended(&self) -> bool {
        self.0.len() > 3
    }

    /// The mode that corresponds: the group bits are the mask where there is one.
    fn mode(&self) -> u16 {
        let group = self.get(MASK).or(self.get(GROUP_OBJ)).unwrap_or(0);
        self.get(USER_OBJ).unwrap_or(0) << 6 | group << 3 | self.get(OTHER).unwrap_or(0)
    }

    /// The tag that the group bits of a mode stand for.
    fn group_tag(&self) -> u16 {
        if self.get(MASK).is_some() { MASK } else { GROUP_OBJ }
    }

    fn each_class(&mut self, perm: u16, change: impl Fn(&mut u16, u16)) {
        for (tag, bits) in [(USER_OBJ, perm >> 6), (self.group_tag(), perm >> 3), (OTHER, perm)] {
            if let Some(entry) = self.entry(tag) {
                change(entry, bits & 7);
            }
        }
    }

    /// What `chmod` does to it.
    fn chmod(&mut self, perm: u16) {
        self.each_class(perm, |entry, bits| *entry = bits);
    }

    /// What creating with a mode does to an inherited one: each class keeps only what the mode
    /// grants too.
    fn limit_to(&mut self, perm: u16) {
        self.each_class(perm, |entry, bits| *entry &= bits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::garbled;

    fn sample() -> Acl {
        let id = u32::MAX;
        Acl(vec![
            (USER_OBJ, 7, id),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, id),
            (MASK, 7, id),
            (OTHER, 0, id),
        ])
    }

    #[test]
    fn chmod_changes_the_mask_and_not_the_group_of_an_extended_acl() {
        // Guards against `chmod g-w` widening what the owning group may do.
        let mut acl = sample();
        acl.chmod(0o640);
        assert_eq!(acl.get(MASK), Some(4));
        assert_eq!(acl.get(GROUP_OBJ), Some(5));
        assert_eq!(acl.mode(), 0o640);
    }

    #[test]
    fn an_inherited_acl_grants_no_more_than_the_mode_asked_for() {
        // Guards against `umask`-less creation in a directory with a default ACL.
        let mut acl = sample();
        acl.limit_to(0o604);
        assert_eq!(acl.mode(), 0o600);
        assert_eq!(acl.get(USER), Some(6), "named entries stay, the mask limits them");
    }

    #[test]
    fn malformed_acls_are_refused() {
        // Guards against storing what the kernel would later refuse to parse.
        assert_eq!(Acl::parse(&sample().encode()), Ok(sample()));
        assert!(Acl::parse(b"").is_err());
        assert!(Acl::parse(&[2, 0, 0, 0, 1]).is_err());
        let no_mask = Acl(sample().0.into_iter().filter(|e| e.0 != MASK).collect());
        assert!(Acl::parse(&no_mask.encode()).is_err());
    }

    #[test]
    fn no_list_of_a_program_is_taken_for_another() {
        // Guards against setxattr of a user that makes the daemon panic, or a list that is stored otherwise.
        let seed = sample().encode();
        garbled(&[&seed], &[&seed[4..12], &[0xff; 8]], |bytes| {
            if let Ok(acl) = Acl::parse(bytes) {
                assert_eq!(&acl.encode()[..], bytes);
            }
        });
    }
}
