//! Recurring messages: each of their times comes into the log once, with the message.

use posthouse_frame::FrameBuf;
use posthouse_frame::varint::{self, Cursor, Malformed};

use super::Shard;
use super::command::{Batch, Occurrence, Refusal, Reply};
use crate::catalog::Catalog;
use crate::page::{Row, TableId};
use crate::record::Record;
use crate::words::{Now, UnixMs};

/// The last time of a recurring message that came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recurred {
    at: UnixMs,
}

impl Row for Recurred {
    const TABLE: TableId = TableId::Recurred;
    const PER_PAGE: usize = 256;

    fn encode(&self, out: &mut Vec<u8>) {
        varint::put(out, self.at.0);
    }

    fn decode(c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        Ok(Recurred { at: UnixMs(c.varint()?) })
    }
}

impl Shard {
    /// The recurring messages that have come here, by number, and the last time of each.
    pub fn recurred(&self) -> impl Iterator<Item = (u32, UnixMs)> + '_ {
        self.recurred.iter().map(|(number, row)| (number, row.at))
    }

    /// The message and its time go into one frame: after a crash both are there or neither.
    pub(super) fn recur(
        &self,
        of: Occurrence,
        batches: &mut [Batch],
        catalog: &Catalog,
        now: Now,
        out: &mut FrameBuf,
    ) -> Reply {
        let recurring = catalog.recurring(of.recurring);
        let is_meant = recurring
            .is_some_and(|recurring| recurring.revision == of.revision && !recurring.config.paused);
        let has_come = self.recurred.get(of.recurring).is_some_and(|row| row.at >= of.at);
        if !is_meant || has_come || of.at > now.wall {
            return Reply::Refused(Refusal::NotRecurring(of.recurring));
        }
        let reply = self.publish(batches, false, catalog, now, out);
        if matches!(reply, Reply::Published(_)) && !posthouse_frame::planted("recur-unrecorded") {
            Record::Recur { recurring: of.recurring, at: of.at }.write(out);
        }
        reply
    }

    pub(super) fn forget_recurring(&self, gone: &[u32], out: &mut FrameBuf) -> Reply {
        for recurring in gone.iter().filter(|number| self.recurred.get(**number).is_some()) {
            Record::Recur { recurring: *recurring, at: UnixMs(0) }.write(out);
        }
        Reply::Done
    }

    pub(super) fn apply_recur(&mut self, recurring: u32, at: UnixMs) {
        if at == UnixMs(0) {
            self.recurred.remove(&mut self.pager, recurring);
        } else {
            self.recurred.set(&mut self.pager, recurring, Recurred { at });
        }
    }
}
