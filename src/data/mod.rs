//! File contents: extents and their arithmetic, and reading segments through memory.
//!
//! [`overlay`] and [`plan`] are pure; [`blocks`] holds the plaintext block cache and decides
//! how much to fetch at once. Nothing here writes to the store.

pub mod blocks;
pub mod overlay;
pub mod plan;

pub use blocks::{BLOCK, BlockCache, BlockCacheOptions, FETCH_BYTES_MAX, ReadError};
pub use overlay::{Overlay, Sliced};
pub use plan::{Extent, Part, Source};
