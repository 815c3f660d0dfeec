//! What a group has done with the positions of a partition above its floor.
//!
//! Positions come in windows of 256. A window holds a bit for each position that
//! is done, and a slot of 16 bytes for each that is in flight or waits; a window
//! without slots is 32 bytes of bits. Acknowledging in any order is a bit and a
//! cleared slot: no interval is ever searched or split.

use std::collections::VecDeque;

use posthouse_frame::varint::{self, Cursor, Malformed};

use crate::page::{Mark, PageId, Pager, TableId};
use crate::words::{Fence, Position, ShardMs};

/// Positions per window.
pub const WINDOW: u64 = 256;

/// The longest reason kept in the state, in bytes. The whole is in the log.
pub const KEPT_REASON_BYTES: usize = 200;

/// One position that is not done: leased, waiting for its time, or waiting for an
/// earlier message of its key.
///
/// A lease and a wait are one thing, a time before which nobody else gets it:
/// `used 1 | unused 3 | visible_at 44 | consumer 16` and `fence 48 | attempt 16`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    a: u64,
    b: u64,
}

const USED: u64 = 1 << 63;

impl Slot {
    /// A slot. Consumer 0 stands for nobody, attempt 0 for never granted.
    pub fn new(visible_at: ShardMs, consumer: u16, fence: Fence, attempt: u16) -> Slot {
        debug_assert!(visible_at <= ShardMs::MAX && fence < 1 << 48);
        Slot {
            a: USED | visible_at.0 << 16 | u64::from(consumer),
            b: fence << 16 | u64::from(attempt),
        }
    }

    fn is_used(self) -> bool {
        self.a & USED != 0
    }

    /// Before this time nobody gets the message.
    pub fn visible_at(self) -> ShardMs {
        ShardMs((self.a & !USED) >> 16)
    }

    /// Who has it; 0 for nobody.
    pub fn consumer(self) -> u16 {
        self.a as u16
    }

    /// The grant.
    pub fn fence(self) -> Fence {
        self.b >> 16
    }

    /// How often it has been granted.
    pub fn attempt(self) -> u16 {
        self.b as u16
    }

    /// Whether somebody has it, or had it and nobody has got it since.
    pub fn is_held(self) -> bool {
        self.consumer() != 0
    }

    /// Whether it waits for an earlier message of its key and was never granted.
    pub fn is_chained(self) -> bool {
        self.attempt() == 0
    }
}

#[derive(Debug)]
struct Slots {
    slots: [Slot; WINDOW as usize],
    keys: Option<Box<[u64; WINDOW as usize]>>,
}

#[derive(Debug, Default)]
struct Window {
    mark: Mark,
    done: [u64; 4],
    used: u16,
    slots: Option<Box<Slots>>,
    reasons: Vec<(u8, Box<str>)>,
}

/// What a position is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing is known of it here: not yet reached, or below the floor.
    Free,
    /// Done.
    Done,
    /// In flight or waiting.
    Used(Slot),
}

/// The windows of one group on one partition, from the floor's on.
#[derive(Debug, Default)]
pub struct Windows {
    first: u64,
    windows: VecDeque<Option<Box<Window>>>,
}

fn number(position: Position) -> u64 {
    position / WINDOW
}

fn index(position: Position) -> usize {
    (position % WINDOW) as usize
}

impl Window {
    fn is_done(&self, index: usize) -> bool {
        self.done[index / 64] & 1 << (index % 64) != 0
    }

    fn slot(&self, index: usize) -> Slot {
        self.slots.as_ref().map_or(Slot::default(), |s| s.slots[index])
    }

    fn key(&self, index: usize) -> u64 {
        self.slots.as_ref().and_then(|s| s.keys.as_ref()).map_or(0, |keys| keys[index])
    }

    fn clear(&mut self, index: usize) {
        if let Some(slots) = &mut self.slots {
            slots.slots[index] = Slot::default();
            if let Some(keys) = &mut slots.keys {
                keys[index] = 0;
            }
            self.used -= 1;
            if self.used == 0 {
                self.slots = None;
            }
        }
        self.reasons.retain(|(at, _)| usize::from(*at) != index);
    }

    fn touch(&mut self, pager: &mut Pager, owner: u32, number: u64) {
        let id = PageId { table: TableId::Windows, owner, number };
        let mut mark = self.mark;
        pager.touch(&mut mark, id, |out| self.encode(out));
        self.mark = mark;
    }

    fn encode(&self, out: &mut Vec<u8>) {
        if self.done == [0; 4] && self.used == 0 {
            return;
        }
        for word in self.done {
            out.extend_from_slice(&word.to_le_bytes());
        }
        varint::put(out, self.used.into());
        for at in 0..WINDOW as usize {
            let slot = self.slot(at);
            if slot.is_used() {
                out.push(at as u8);
                varint::put(out, slot.visible_at().0);
                varint::put(out, slot.consumer().into());
                varint::put(out, slot.fence());
                varint::put(out, slot.attempt().into());
                let key = self.key(at);
                out.push(u8::from(key != 0));
                if key != 0 {
                    out.extend_from_slice(&key.to_le_bytes());
                }
            }
        }
        varint::put(out, self.reasons.len() as u64);
        for (at, reason) in &self.reasons {
            out.push(*at);
            varint::put_bytes(out, reason.as_bytes());
        }
    }

    fn decode(bytes: &[u8]) -> Result<Window, Malformed> {
        let mut c = Cursor::new(bytes);
        let mut window = Window::default();
        for word in &mut window.done {
            *word = c.u64()?;
        }
        let narrow = |c: &mut Cursor<'_>| -> Result<u16, Malformed> {
            let at = c.position();
            u16::try_from(c.varint()?).map_err(|_| Malformed { at })
        };
        let used = narrow(&mut c)?;
        for _ in 0..used {
            let at = usize::from(c.u8()?);
            let (visible, consumer) = (ShardMs(c.varint()?), narrow(&mut c)?);
            let (fence, attempt) = (c.varint()?, narrow(&mut c)?);
            let key = if c.u8()? != 0 { c.u64()? } else { 0 };
            window.set(at, Slot::new(visible, consumer, fence, attempt), key);
        }
        for _ in 0..c.varint()? {
            let at = c.u8()?;
            let text = std::str::from_utf8(c.bytes()?);
            let reason = text.map_err(|_| Malformed { at: c.position() })?;
            window.reasons.push((at, reason.into()));
        }
        if window.used != used || !c.is_empty() {
            return Err(Malformed { at: c.position() });
        }
        Ok(window)
    }

    fn set(&mut self, index: usize, slot: Slot, key: u64) {
        let slots = self.slots.get_or_insert_with(|| {
            Box::new(Slots { slots: [Slot::default(); WINDOW as usize], keys: None })
        });
        self.used += u16::from(!slots.slots[index].is_used());
        slots.slots[index] = slot;
        if key != 0 {
            slots.keys.get_or_insert_with(|| Box::new([0; WINDOW as usize]))[index] = key;
        }
    }
}

impl Windows {
    fn find(&self, position: Position) -> Option<&Window> {
        let at = number(position).checked_sub(self.first)?;
        self.windows.get(at as usize)?.as_deref()
    }

    fn at(&mut self, position: Position) -> &mut Window {
        let number = number(position);
        if self.windows.is_empty() {
            self.first = number;
        }
        while number < self.first {
            self.windows.push_front(None);
            self.first -= 1;
        }
        let at = (number - self.first) as usize;
        if self.windows.len() <= at {
            self.windows.resize_with(at + 1, || None);
        }
        self.windows[at].get_or_insert_with(Box::default)
    }

    /// Whether nothing is done or used.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// What a position is in.
    #[inline]
    pub fn state(&self, position: Position) -> State {
        let Some(window) = self.find(position) else { return State::Free };
        let at = index(position);
        let slot = window.slot(at);
        if slot.is_used() {
            State::Used(slot)
        } else if window.is_done(at) {
            State::Done
        } else {
            State::Free
        }
    }

    /// The key that a used position holds, 0 for none.
    pub fn key(&self, position: Position) -> u64 {
        self.find(position).map_or(0, |window| window.key(index(position)))
    }

    /// What the last nack of a used position said.
    pub fn reason(&self, position: Position) -> Option<&str> {
        let at = index(position);
        let reasons = &self.find(position)?.reasons;
        reasons.iter().find(|(i, _)| usize::from(*i) == at).map(|(_, reason)| &**reason)
    }

    /// Uses a position, which must not be done. Returns the slot it had.
    pub fn put(
        &mut self,
        pager: &mut Pager,
        owner: u32,
        position: Position,
        slot: Slot,
        key: u64,
    ) -> Option<Slot> {
        let window = self.at(position);
        window.touch(pager, owner, number(position));
        let before = window.slot(index(position));
        debug_assert!(!window.is_done(index(position)), "position {position} is done");
        window.set(index(position), slot, key);
        before.is_used().then_some(before)
    }

    /// Keeps what a nack said with a used position.
    pub fn set_reason(&mut self, pager: &mut Pager, owner: u32, position: Position, text: &str) {
        let window = self.at(position);
        window.touch(pager, owner, number(position));
        let at = index(position) as u8;
        window.reasons.retain(|(i, _)| *i != at);
        let end = text.floor_char_boundary(KEPT_REASON_BYTES);
        if end > 0 {
            window.reasons.push((at, text[..end].into()));
        }
    }

    /// Marks a position done. Returns what it was in before.
    pub fn finish(&mut self, pager: &mut Pager, owner: u32, position: Position) -> State {
        let before = self.state(position);
        if before != State::Done {
            let window = self.at(position);
            window.touch(pager, owner, number(position));
            let at = index(position);
            if matches!(before, State::Used(_)) {
                window.clear(at);
            }
            window.done[at / 64] |= 1 << (at % 64);
        }
        before
    }

    /// The first position from `from` on that is not done.
    pub fn first_open(&self, from: Position) -> Position {
        let mut position = from;
        while let Some(window) = self.find(position) {
            let at = index(position);
            let word = !window.done[at / 64] >> (at % 64);
            if word != 0 {
                return position + u64::from(word.trailing_zeros());
            }
            position = (position | 63) + 1;
        }
        position
    }

    /// Forgets what lies wholly below `floor`.
    pub fn forget_below(&mut self, pager: &mut Pager, owner: u32, floor: Position) {
        while self.first < number(floor)
            && let Some(window) = self.windows.pop_front()
        {
            Self::removed(window, pager, owner, self.first);
            self.first += 1;
        }
        if let Some(Some(window)) = self.windows.front()
            && window.used == 0
            && self.windows.len() == 1
            && self.done_above(floor) == 0
        {
            // All that the last window still holds lies below the floor.
            let window = self.windows.pop_front().flatten();
            Self::removed(window, pager, owner, self.first);
        }
    }

    fn removed(window: Option<Box<Window>>, pager: &mut Pager, owner: u32, number: u64) {
        if let Some(mut window) = window {
            window.touch(pager, owner, number);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self, pager: &mut Pager, owner: u32) {
        while let Some(window) = self.windows.pop_front() {
            Self::removed(window, pager, owner, self.first);
            self.first += 1;
        }
    }

    /// Calls `each` for every used position, in order, with its slot and key.
    pub fn for_each_used(&self, mut each: impl FnMut(Position, Slot, u64)) {
        for (number, window) in (self.first..).zip(&self.windows) {
            let Some(window) = window else { continue };
            if window.used > 0 {
                for at in 0..WINDOW as usize {
                    let slot = window.slot(at);
                    if slot.is_used() {
                        each(number * WINDOW + at as u64, slot, window.key(at));
                    }
                }
            }
        }
    }

    /// How many positions from `floor` on are done.
    pub fn done_above(&self, floor: Position) -> u64 {
        let mut count = 0;
        for (number, window) in (self.first..).zip(&self.windows) {
            let Some(window) = window else { continue };
            let below = floor.saturating_sub(number * WINDOW).min(WINDOW) as u32;
            for (word, bits) in (0..).zip(window.done) {
                let below = below.saturating_sub(word * 64).min(64);
                count += u64::from(bits.checked_shr(below).unwrap_or(0).count_ones());
            }
        }
        count
    }

    /// Counts every window as changed.
    pub fn touch_all(&mut self, pager: &mut Pager, owner: u32) {
        for (number, window) in (self.first..).zip(&mut self.windows) {
            if let Some(window) = window {
                window.touch(pager, owner, number);
            }
        }
    }

    /// Captures a window that waits for the snapshot.
    pub fn capture(&mut self, pager: &mut Pager, id: PageId) {
        let at = id.number.checked_sub(self.first).map(|at| at as usize);
        match at.and_then(|at| self.windows.get_mut(at)) {
            Some(Some(window)) => {
                let mut mark = window.mark;
                pager.capture_waiting(id, Some(&mut mark), |out| window.encode(out));
                window.mark = mark;
            }
            _ => pager.capture_waiting(id, None, |_| ()),
        }
    }

    /// Puts a window back that a snapshot holds.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are no window.
    pub fn restore(&mut self, number: u64, bytes: &[u8]) -> Result<(), Malformed> {
        let window = Window::decode(bytes)?;
        *self.at(number * WINDOW) = window;
        Ok(())
    }

    /// Calls `each` with the bytes of every window.
    pub fn pages(&self, owner: u32, each: &mut impl FnMut(PageId, &[u8])) {
        let mut bytes = Vec::new();
        for (number, window) in (self.first..).zip(&self.windows) {
            if let Some(window) = window {
                bytes.clear();
                window.encode(&mut bytes);
                if !bytes.is_empty() {
                    each(PageId { table: TableId::Windows, owner, number }, &bytes);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn slot(n: u64) -> Slot {
        Slot::new(ShardMs(n), n as u16, n, n as u16 + 1)
    }

    #[test]
    fn a_slot_holds_the_largest_values() {
        let slot = Slot::new(ShardMs::MAX, u16::MAX, (1 << 48) - 1, u16::MAX);
        assert_eq!(slot.visible_at(), ShardMs::MAX);
        assert_eq!((slot.consumer(), slot.attempt()), (u16::MAX, u16::MAX));
        assert_eq!(slot.fence(), (1 << 48) - 1);
        assert!(slot.is_used() && slot.is_held() && !slot.is_chained());
        assert!(!Slot::default().is_used());
        assert!(Slot::new(ShardMs(0), 0, 0, 0).is_used());
    }

    #[derive(Clone, Debug)]
    enum Op {
        Put(u64, u64),
        Finish(u64),
        Floor(u64),
        Reason(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let position = prop_oneof![0u64..300, 250u64..260, 0u64..3000];
        prop_oneof![
            4 => (position.clone(), 1u64..9).prop_map(|(p, n)| Op::Put(p, n)),
            4 => position.clone().prop_map(Op::Finish),
            1 => position.clone().prop_map(Op::Floor),
            1 => position.prop_map(Op::Reason),
        ]
    }

    proptest! {
        #[test]
        fn windows_are_a_map_from_positions(ops in proptest::collection::vec(op(), 1..150)) {
            let mut windows = Windows::default();
            let mut pager = Pager::default();
            let mut model: BTreeMap<u64, State> = BTreeMap::new();
            let mut floor = 0;
            for op in ops {
                match op {
                    Op::Put(p, n) if p >= floor && model.get(&p) != Some(&State::Done) => {
                        let before = windows.put(&mut pager, 7, p, slot(n), n % 3);
                        let expected = match model.insert(p, State::Used(slot(n))) {
                            Some(State::Used(slot)) => Some(slot),
                            _ => None,
                        };
                        prop_assert_eq!(before, expected);
                    }
                    Op::Finish(p) if p >= floor => {
                        let before = model.insert(p, State::Done).unwrap_or(State::Free);
                        prop_assert_eq!(windows.finish(&mut pager, 7, p), before);
                    }
                    Op::Floor(p) if p >= floor => {
                        for done in floor..p {
                            windows.finish(&mut pager, 7, done);
                        }
                        model.retain(|q, _| *q >= p);
                        floor = p;
                        while model.get(&floor) == Some(&State::Done) {
                            model.remove(&floor);
                            floor += 1;
                        }
                        prop_assert_eq!(windows.first_open(p), floor);
                        windows.forget_below(&mut pager, 7, floor);
                    }
                    Op::Reason(p) if matches!(model.get(&p), Some(State::Used(_))) => {
                        windows.set_reason(&mut pager, 7, p, "why");
                        prop_assert_eq!(windows.reason(p), Some("why"));
                    }
                    _ => {}
                }
            }
            for p in floor..3001 {
                let expected = model.get(&p).copied().unwrap_or(State::Free);
                prop_assert_eq!(windows.state(p), expected, "position {}", p);
            }
            let done = model.values().filter(|s| **s == State::Done).count() as u64;
            prop_assert_eq!(windows.done_above(floor), done);

            let mut restored = Windows::default();
            let mut pages = Vec::new();
            windows.pages(7, &mut |id, bytes| pages.push((id, bytes.to_vec())));
            for (id, bytes) in &pages {
                restored.restore(id.number, bytes).unwrap();
            }
            let mut again = Vec::new();
            restored.pages(7, &mut |id, bytes| again.push((id, bytes.to_vec())));
            prop_assert_eq!(&pages, &again);
            if model.is_empty() {
                prop_assert!(pages.is_empty(), "nothing is left, but pages are");
            }
        }
    }

    #[test]
    fn a_reason_goes_with_its_slot_and_is_cut_at_a_character() {
        let mut windows = Windows::default();
        let mut pager = Pager::default();
        windows.put(&mut pager, 1, 5, slot(1), 0);
        windows.set_reason(&mut pager, 1, 5, &"ä".repeat(150));
        assert_eq!(windows.reason(5).unwrap().len(), 200);
        windows.finish(&mut pager, 1, 5);
        assert_eq!(windows.reason(5), None);
    }
}
