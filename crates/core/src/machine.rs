//! What both machines (a shard's and the catalog's) offer to whoever runs them.

use posthouse_frame::FrameNo;
use posthouse_frame::varint::Malformed;

use crate::page::{Captured, PageId};
use crate::record::RecordError;

/// State that comes from frames, and can be snapshotted and restored.
///
/// Whoever runs a machine calls [`Machine::apply`] for what a frame holds, in order
/// and in any pieces, then [`Machine::sealed`] once per frame. A snapshot stands
/// between two frames.
pub trait Machine {
    /// Changes the state as the records in `meta`, part of frame `frame`, say.
    ///
    /// # Errors
    /// [`RecordError`] for bytes that are no records; the machine must then not be
    /// used any more.
    fn apply(&mut self, frame: FrameNo, meta: &[u8]) -> Result<(), RecordError>;

    /// The frame is complete; it has `bytes` of header, meta and body.
    fn sealed(&mut self, frame: FrameNo, bytes: usize);

    /// Starts a snapshot of the state as it is now, between two frames.
    fn begin_snapshot(&mut self);

    /// Captures up to about `pages` pages for the snapshot. Returns them, with those
    /// that changes captured meanwhile, and whether all have been.
    fn walk(&mut self, pages: usize) -> (Vec<Captured>, bool);

    /// A snapshot has been lost after its pages were captured: the next one holds all
    /// pages.
    fn touch_all(&mut self);

    /// Puts a page back that a snapshot holds. Pages come in the order of their names.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are no such page.
    fn restore_page(&mut self, id: PageId, bytes: &[u8]) -> Result<(), Malformed>;

    /// All pages are back: derives what is derived from them.
    fn restored(&mut self);

    /// Whether anything has changed since the last snapshot began.
    fn has_changes(&self) -> bool;

    /// The digest of the state as it is now; visits everything.
    fn digest(&self) -> u64;
}
