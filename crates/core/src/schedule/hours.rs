//! How many scheduled messages are due in each hour, by partition: the histogram that
//! users see, kept up with every change so that nothing has to be counted.

use std::collections::BTreeMap;

use posthouse_frame::varint::{self, Cursor, Malformed};

use crate::page::{Mark, PageId, Pager, TableId};
use crate::words::{PartitionId, UnixMs};

/// Milliseconds of an hour.
pub const HOUR_MS: u64 = 3_600_000;

/// Hours of one page.
const PER_PAGE: u64 = 64;

/// The most pages. Messages in further hours are counted together.
const PAGES: usize = 1 << 18;

#[derive(Debug)]
struct Page {
    mark: Mark,
    counts: [u32; PER_PAGE as usize],
}

/// The histogram.
#[derive(Debug, Default)]
pub struct Hours {
    /// By partition, and hour since 1970 divided by 64.
    pages: BTreeMap<(PartitionId, u32), Box<Page>>,
    /// Messages for which there was no room for a page.
    uncounted: u64,
}

fn split(due: UnixMs) -> (u32, usize) {
    let hour = due.0 / HOUR_MS;
    // 44 bits of milliseconds are 23 bits of hours.
    ((hour / PER_PAGE) as u32, (hour % PER_PAGE) as usize)
}

fn name(partition: PartitionId, number: u32) -> PageId {
    PageId { table: TableId::Hours, owner: partition.0, number: number.into() }
}

fn encode(counts: &[u32], out: &mut Vec<u8>) {
    let Some(last) = counts.iter().rposition(|count| *count != 0) else { return };
    for count in &counts[..=last] {
        varint::put(out, (*count).into());
    }
}

impl Hours {
    /// Bytes that it takes in memory, nearly.
    pub fn bytes(&self) -> usize {
        self.pages.len() * (size_of::<Page>() + 32)
    }

    /// Messages that are in no hour because there are too many hours.
    pub fn uncounted(&self) -> u64 {
        self.uncounted
    }

    /// Goes on with what a snapshot says of [`Hours::uncounted`].
    pub fn resume(&mut self, uncounted: u64) {
        self.uncounted = uncounted;
    }

    /// A message of `partition` is due at `due`.
    pub fn add(&mut self, pager: &mut Pager, partition: PartitionId, due: UnixMs) {
        let (number, index) = split(due);
        let is_full = self.pages.len() >= PAGES;
        if is_full && !self.pages.contains_key(&(partition, number)) {
            self.uncounted += 1;
            return;
        }
        let page = self.pages.entry((partition, number)).or_insert_with(|| {
            Box::new(Page { mark: Mark::default(), counts: [0; PER_PAGE as usize] })
        });
        let Page { mark, counts } = &mut **page;
        pager.touch(mark, name(partition, number), |out| encode(counts, out));
        counts[index] = counts[index].saturating_add(1);
    }

    /// A message of `partition` that was due at `due` is not any more.
    pub fn subtract(&mut self, pager: &mut Pager, partition: PartitionId, due: UnixMs) {
        let (number, index) = split(due);
        let Some(page) = self.pages.get_mut(&(partition, number)) else {
            self.uncounted = self.uncounted.saturating_sub(1);
            return;
        };
        let Page { mark, counts } = &mut **page;
        if counts[index] == 0 {
            // It came when there was no room for the page, which was made later.
            self.uncounted = self.uncounted.saturating_sub(1);
            return;
        }
        pager.touch(mark, name(partition, number), |out| encode(counts, out));
        counts[index] -= 1;
        if counts.iter().all(|count| *count == 0) {
            self.pages.remove(&(partition, number));
        }
    }

    /// Nothing of `partition` is due any more.
    pub fn clear(&mut self, pager: &mut Pager, partition: PartitionId) {
        let range = (partition, 0)..=(partition, u32::MAX);
        let numbers: Vec<u32> = self.pages.range(range).map(|((_, number), _)| *number).collect();
        for number in numbers {
            if let Some(mut page) = self.pages.remove(&(partition, number)) {
                let Page { mark, counts } = &mut *page;
                pager.touch(mark, name(partition, number), |out| encode(counts, out));
            }
        }
    }

    /// The hours of a partition in which something is due: when each begins, and how
    /// many messages.
    pub fn of(&self, partition: PartitionId) -> impl Iterator<Item = (UnixMs, u64)> + '_ {
        self.pages.range((partition, 0)..=(partition, u32::MAX)).flat_map(|((_, number), page)| {
            let first = u64::from(*number) * PER_PAGE;
            let hours = (first..).zip(&page.counts).filter(|(_, count)| **count > 0);
            hours.map(|(hour, count)| (UnixMs(hour * HOUR_MS), u64::from(*count)))
        })
    }

    /// Counts every page as changed.
    pub fn touch_all(&mut self, pager: &mut Pager) {
        for ((partition, number), page) in &mut self.pages {
            let Page { mark, counts } = &mut **page;
            pager.touch(mark, name(*partition, *number), |out| encode(counts, out));
        }
    }

    /// Captures a page that waits for the snapshot.
    pub fn capture(&mut self, pager: &mut Pager, id: PageId) {
        match self.pages.get_mut(&(PartitionId(id.owner), id.number as u32)) {
            Some(page) => {
                let Page { mark, counts } = &mut **page;
                pager.capture_waiting(id, Some(mark), |out| encode(counts, out));
            }
            None => pager.capture_waiting(id, None, |_| ()),
        }
    }

    /// Puts a page back that a snapshot holds.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are no such page.
    pub fn restore(&mut self, id: PageId, bytes: &[u8]) -> Result<(), Malformed> {
        let number = u32::try_from(id.number).map_err(|_| Malformed { at: 0 })?;
        let mut counts = [0; PER_PAGE as usize];
        let mut c = Cursor::new(bytes);
        for count in &mut counts {
            if !c.is_empty() {
                *count = c.varint_u32()?;
            }
        }
        if !c.is_empty() {
            return Err(Malformed { at: c.position() });
        }
        let page = Box::new(Page { mark: Mark::default(), counts });
        self.pages.insert((PartitionId(id.owner), number), page);
        Ok(())
    }

    /// Calls `each` with the bytes of every page.
    pub fn pages(&self, mut each: impl FnMut(PageId, &[u8])) {
        let mut bytes = Vec::new();
        for ((partition, number), page) in &self.pages {
            bytes.clear();
            encode(&page.counts, &mut bytes);
            if !bytes.is_empty() {
                each(name(*partition, *number), &bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hours_are_counted_as_a_map_counts_them(
            dues in prop::collection::vec((0u32..3, 0u64..300 * HOUR_MS, any::<bool>()), 0..200),
        ) {
            let (mut hours, mut pager) = (Hours::default(), Pager::default());
            let mut model: BTreeMap<(PartitionId, u64), u64> = BTreeMap::new();
            for (partition, due, stays) in &dues {
                hours.add(&mut pager, PartitionId(*partition), UnixMs(*due));
                *model.entry((PartitionId(*partition), due / HOUR_MS)).or_default() += 1;
                if !stays {
                    hours.subtract(&mut pager, PartitionId(*partition), UnixMs(*due));
                    *model.get_mut(&(PartitionId(*partition), due / HOUR_MS)).unwrap() -= 1;
                }
            }
            let mut back = Hours::default();
            hours.pages(|id, bytes| back.restore(id, bytes).unwrap());
            for partition in (0..3).map(PartitionId) {
                let of = |hours: &Hours| hours.of(partition).collect::<Vec<_>>();
                let wanted = model.iter().filter(|((p, _), count)| *p == partition && **count > 0);
                let wanted = wanted.map(|((_, hour), count)| (UnixMs(hour * HOUR_MS), *count));
                prop_assert_eq!(of(&hours), wanted.collect::<Vec<_>>());
                prop_assert_eq!(of(&back), of(&hours));
            }
            prop_assert_eq!(hours.pages.len(), back.pages.len());
            hours.clear(&mut pager, PartitionId(1));
            prop_assert_eq!(hours.of(PartitionId(1)).count(), 0);
            prop_assert_eq!(hours.uncounted(), 0);
        }
    }
}
