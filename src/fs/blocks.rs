//! How many blocks a file takes: those in which its extents and pending writes have bytes.
//!
//! `allocated` of an inode is changed by what each operation changes. Of a file without holes that
//! follows from its size; else it has to be known where its holes are. Memory knows as a rule; if
//! not, the extents are loaded once. Where that takes long (no store: writes must go on) or is too
//! much, the count is estimated: too high rather than too low, and never none where there may be data.

use std::collections::HashSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::copy::moved;
use super::{Attempt, Fs, Step};
use crate::base::ContentsId;
use crate::commit::Lookup;
use crate::data::{Part, Source};
use crate::meta::Inode;

/// What `st_blocks` counts in, bytes.
const BLOCK: u64 = 4096;
/// The most extents that are loaded to count blocks.
const EXTENTS_MAX: usize = 4096;
/// Files remembered to have more; when there are as many, all are tried again.
const SCATTERED_MAX: usize = 1024;
/// How long an operation waits for extents that it only counts.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long none are waited for after that was not enough.
const SILENCE: Duration = Duration::from_secs(60);
/// How often one operation loads extents, which a commit may put out of date at once.
pub(super) const LOADS_MAX: u32 = 4;

/// Of which files extents are not loaded, and until when of none.
#[derive(Debug, Default)]
pub(super) struct Uncounted {
    scattered: HashSet<ContentsId>,
    silent_until: Option<Instant>,
}

/// `bytes` rounded up to whole blocks.
pub(super) fn whole_blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// `range` made larger to whole blocks.
fn around(range: &Range<u64>) -> Range<u64> {
    range.start / BLOCK * BLOCK..whole_blocks(range.end)
}

/// Bytes of the blocks in which `parts`, in order and disjoint, have data outside of `hole`.
fn in_blocks(parts: &[Part], hole: &Range<u64>) -> u64 {
    let (mut bytes, mut counted_to) = (0, 0);
    let data = parts.iter().filter(|p| !matches!(p.source, Source::Hole));
    for part in data {
        let before = part.start..part.end.min(hole.start);
        let behind = part.start.max(hole.end)..part.end;
        for piece in [before, behind].iter().filter(|piece| piece.start < piece.end) {
            let blocks = around(piece);
            bytes += blocks.end - counted_to.clamp(blocks.start, blocks.end);
            counted_to = blocks.end;
        }
    }
    bytes
}

impl Fs {
    /// What `range` of the contents is made of; `None`: not to be had now.
    fn counted_parts(&self, file: ContentsId, range: &Range<u64>) -> Attempt<Option<Vec<Part>>> {
        if let Lookup::Hit(parts) = self.view.parts_now(file, range.start, range.end) {
            return Ok(Some(parts));
        }
        let uncounted = self.uncounted.lock();
        let silent = uncounted.silent_until.is_some_and(|until| Instant::now() < until);
        match silent || uncounted.scattered.contains(&file) {
            true => Ok(None),
            false => Err(Step::Extents(file)),
        }
    }

    /// Brings the extents of `file` into memory for [`Fs::counted_parts`], or sees to it that it
    /// does without. `again`: they were loaded and were not there still.
    pub(super) async fn load_to_count(&self, file: ContentsId, again: bool) {
        let load = self.view.load_few_extents(file, 0, u64::MAX, EXTENTS_MAX);
        let loaded = tokio::time::timeout(PATIENCE, load).await;
        let mut uncounted = self.uncounted.lock();
        match loaded {
            Ok(Ok(true)) if !again => {}
            Ok(Ok(_)) => {
                if uncounted.scattered.len() >= SCATTERED_MAX {
                    uncounted.scattered.clear();
                }
                uncounted.scattered.insert(file);
            }
            Ok(Err(_)) | Err(_) => uncounted.silent_until = Some(Instant::now() + SILENCE),
        }
    }

    /// Changes the count of `inode` to what it is once `written` has data. Before its size changes.
    pub(super) fn count_written(
        &self,
        file: ContentsId,
        inode: &mut Inode,
        written: Range<u64>,
    ) -> Attempt<()> {
        let most = whole_blocks(inode.size.max(written.end));
        let lacking = self.lacking(file, inode, &written)?;
        inode.allocated = (inode.allocated + lacking).min(most);
        Ok(())
    }

    /// Bytes of the blocks of `range` that have no data.
    pub(super) fn lacking(
        &self,
        file: ContentsId,
        inode: &Inode,
        range: &Range<u64>,
    ) -> Attempt<u64> {
        let blocks = around(range);
        let old_end = whole_blocks(inode.size);
        let inside = blocks.start.min(old_end)..blocks.end.min(old_end);
        let had = match () {
            () if inside.is_empty() => 0,
            () if inode.allocated >= old_end => inside.end - inside.start,
            () => {
                let parts = self.counted_parts(file, &inside)?;
                parts.map_or(0, |parts| in_blocks(&parts, &(0..0)))
            }
        };
        Ok(blocks.end - blocks.start - had)
    }

    /// Changes the count of `inode` to what it is once `written` has what `parts` of a source are
    /// made of. Before its size changes.
    pub(super) fn count_cloned(
        &self,
        file: ContentsId,
        inode: &mut Inode,
        written: Range<u64>,
        parts: &[Part],
    ) -> Attempt<()> {
        let blocks = around(&written);
        let new = moved(parts, &written);
        let inside = blocks.start..blocks.end.min(inode.size).max(blocks.start);
        let (nothing, all_new) = (0..0, in_blocks(&new, &(0..0)));
        inode.allocated = match self.counted_parts(file, &inside)? {
            Some(old) => {
                let had = in_blocks(&old, &nothing);
                let before = old.iter().filter(|p| p.start < written.start);
                let before = before.map(|p| Part { end: p.end.min(written.start), ..*p });
                let behind = old.iter().filter(|p| p.end > written.end);
                let behind = behind.map(|p| Part { start: p.start.max(written.end), ..*p });
                let now: Vec<Part> = before.chain(new).chain(behind).collect();
                (inode.allocated + in_blocks(&now, &nothing)).saturating_sub(had)
            }
            None => inode.allocated + all_new,
        };
        let most = whole_blocks(inode.size.max(written.end));
        inode.allocated = inode.allocated.min(most);
        Ok(())
    }

    /// Changes the count of `inode` to what it is once `hole` has no data any more; to the end of
    /// the file, if that is where it gets shorter. Before its size changes.
    pub(super) fn count_hole(
        &self,
        file: ContentsId,
        inode: &mut Inode,
        hole: Range<u64>,
    ) -> Attempt<()> {
        let hole = hole.start..hole.end.min(inode.size);
        if inode.allocated == 0 || hole.is_empty() {
            return Ok(());
        }
        let (all, blocks) = (0..inode.size, around(&hole));
        let cut = |parts: &[Part]| in_blocks(parts, &(0..0)) - in_blocks(parts, &hole);
        if hole == all {
            inode.allocated = 0;
            return Ok(());
        }
        // Without knowing: none, for there may be other holes.
        let freed = self.counted_parts(file, &blocks)?.map_or(0, |parts| cut(&parts));
        inode.allocated = inode.allocated.saturating_sub(freed);
        if inode.allocated == 0 {
            // `tar` takes a file without blocks for one without data: it must be so.
            let parts = self.counted_parts(file, &all)?;
            inode.allocated = parts.map_or(BLOCK, |parts| in_blocks(&parts, &hole));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::SegmentId;
    use proptest::prelude::*;

    const LEN: usize = 6 * BLOCK as usize;

    proptest! {
        #[test]
        fn blocks_are_those_with_a_byte_of_data_outside_the_hole(
            ranges in prop::collection::vec((0..LEN, 1..2 * BLOCK as usize, any::<bool>()), 0..8),
            hole in (0..LEN, 0..2 * BLOCK as usize),
        ) {
            // Guards against a block that is counted twice because two extents touch it, or not
            // at all because a hole ends in it: a byte by byte model has the right number.
            let mut data = [false; LEN];
            for &(start, len, has) in &ranges {
                data[start..LEN.min(start + len)].fill(has);
            }
            let mut parts: Vec<Part> = Vec::new();
            for (at, &has) in data.iter().enumerate() {
                let at = at as u64;
                match parts.last_mut() {
                    Some(p) if has != matches!(p.source, Source::Hole) && !at.is_multiple_of(1000) => {
                        p.end = at + 1;
                    }
                    _ => {
                        let id = SegmentId([1; 16]);
                        let source =
                            if has { Source::Segment { id, offset: at } } else { Source::Hole };
                        parts.push(Part { start: at, end: at + 1, source });
                    }
                }
            }
            data[hole.0..LEN.min(hole.0 + hole.1)].fill(false);
            let expected = data.chunks(BLOCK as usize).filter(|b| b.contains(&true)).count();
            let hole = hole.0 as u64..(hole.0 + hole.1) as u64;
            prop_assert_eq!(in_blocks(&parts, &hole), expected as u64 * BLOCK);
        }
    }
}
