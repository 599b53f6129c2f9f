//! An ordered map from file ranges to where their bytes are, where a newer range hides what it
//! covers of older ones. Pure.

use std::collections::BTreeMap;

/// A location that can be entered at an offset: cutting the first `bytes` off a range moves
/// its location by as much.
pub trait Sliced: Copy {
    /// The location `bytes` further on.
    fn advance(self, bytes: u64) -> Self;
}

#[derive(Clone, Copy, Debug)]
struct Piece<S> {
    end: u64,
    at: S,
}

/// Disjoint ranges of a file, in order. Offsets and ends are bytes; an end may be `u64::MAX`.
#[derive(Clone, Debug)]
pub struct Overlay<S> {
    pieces: BTreeMap<u64, Piece<S>>,
}

impl<S> Default for Overlay<S> {
    fn default() -> Self {
        Overlay { pieces: BTreeMap::new() }
    }
}

impl<S: Sliced> Overlay<S> {
    /// Puts `start..end` at `at`, hiding whatever it covers. An empty range does nothing.
    pub fn insert(&mut self, start: u64, end: u64, at: S) {
        if start < end {
            self.cut(start, end);
            self.pieces.insert(start, Piece { end, at });
        }
    }

    /// Removes `start..end`, keeping what lies on either side of it.
    pub fn cut(&mut self, start: u64, end: u64) {
        if let Some((&left, piece)) = self.pieces.range_mut(..start).next_back()
            && piece.end > start
        {
            let whole = *piece;
            piece.end = start;
            if whole.end > end {
                self.pieces.insert(end, Piece { end: whole.end, at: whole.at.advance(end - left) });
                return;
            }
        }
        while let Some((&left, &piece)) = self.pieces.range(start..end).next() {
            self.pieces.remove(&left);
            if piece.end > end {
                self.pieces.insert(end, Piece { end: piece.end, at: piece.at.advance(end - left) });
                return;
            }
        }
    }

    /// The parts of `start..end` that are here, in order, clipped to it:
    /// `(start, end, location of start)`.
    pub fn within(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64, S)> + '_ {
        let first = self
            .pieces
            .range(..start)
            .next_back()
            .filter(|(_, piece)| piece.end > start)
            .map(|(&left, _)| left)
            .unwrap_or(start);
        // Nothing is asked of an empty range, also when it lies inside a piece.
        let past = if start < end { end } else { first };
        self.pieces.range(first..past).map(move |(&left, piece)| {
            let from = left.max(start);
            (from, piece.end.min(end), piece.at.advance(from - left))
        })
    }

    /// All ranges, in order: `(start, end, location of start)`.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, S)> + '_ {
        self.pieces.iter().map(|(&start, piece)| (start, piece.end, piece.at))
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether there is no range.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Sliced for u64 {
        fn advance(self, bytes: u64) -> Self {
            self + bytes
        }
    }

    proptest! {
        #[test]
        fn an_overlay_shows_for_every_byte_the_newest_range_over_it(
            ops in prop::collection::vec((0u64..64, 0u64..64, any::<bool>()), 1..40),
            query in (0u64..64, 0u64..64),
        ) {
            // Guards against splits that shift a location by the wrong amount: a byte-by-byte
            // model records, for each position, operation number * 1000 + offset in the range.
            let mut overlay = Overlay::default();
            let mut model = [None; 130];
            for (i, &(start, len, cut)) in ops.iter().enumerate() {
                let base = (i as u64 + 1) * 1000;
                if cut {
                    overlay.cut(start, start + len);
                } else {
                    overlay.insert(start, start + len, base);
                }
                for k in 0..len {
                    model[(start + k) as usize] = (!cut).then_some(base + k);
                }
            }
            let (start, len) = query;
            let mut seen = [None; 130];
            let mut last = start;
            for (from, to, at) in overlay.within(start, start + len) {
                prop_assert!(from >= last && to <= start + len && from < to);
                last = to;
                for k in from..to {
                    seen[k as usize] = Some(at + (k - from));
                }
            }
            for k in start..start + len {
                prop_assert_eq!(seen[k as usize], model[k as usize]);
            }
        }
    }
}
