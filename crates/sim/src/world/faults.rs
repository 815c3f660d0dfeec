//! What goes wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use posthouse_log::files::Files as _;
use posthouse_log::files::sim::{EIO, Fault, Op};

use super::World;
use crate::check::Violation;
use crate::history::What;
use crate::plan::Part;

/// All the room that the disk has.
const ROOM: u64 = 1 << 40;

impl World {
    pub(super) fn strike(&mut self, name: &'static str) {
        *self.figures.faults.entry(name).or_default() += 1;
        self.note(What::Fault { name });
    }

    /// Perhaps something goes wrong.
    pub(super) fn fault(&mut self) -> Result<(), Violation> {
        if self.full_until.is_some_and(|until| until <= self.step) {
            self.full_until = None;
            self.disk.set_room(ROOM);
            self.note(What::Fault { name: "room again" });
        }
        let roll = self.rng.below(4000);
        match roll {
            0..4 if self.has(Part::Power) => {
                self.strike("power");
                self.lose_power()?;
            }
            4..10 if self.has(Part::Power) => {
                self.strike("power after answers");
                self.answers_are_last = true;
            }
            10..13 if self.has(Part::Power) => {
                self.strike("power in a snapshot");
                let which = self.rng.below(self.slow.len() as u64) as usize;
                self.slow[which] = self.step + 150;
                self.snapshot_is_last = Some(which);
            }
            13..20 if self.has(Part::Power) => {
                self.strike("power soon");
                let after = 1 + self.rng.below(30);
                self.disk.cut_power_after(after);
                self.power_fails = true;
            }
            20..32 if self.has(Part::Kill) => {
                self.strike("kill");
                self.down("kill");
                self.boot()?;
            }
            32..38 if self.has(Part::Stop) => {
                self.strike("stop");
                self.stop()?;
            }
            38..44 if self.has(Part::Errors) => {
                let op = *self.rng.pick(&[Op::Write, Op::Sync, Op::Sync, Op::Read, Op::Create]);
                self.strike(match op {
                    Op::Write => "write fails",
                    Op::Sync => "sync fails",
                    Op::Read => "read fails",
                    _ => "create fails",
                });
                let path = *self.rng.pick(&["", "log", "chunks", "manifest"]);
                let after = self.rng.below(5);
                self.disk.fail(Fault { op, path: path.into(), after, times: 1, errno: EIO });
            }
            44..48 if self.has(Part::Full) && self.full_until.is_none() => {
                self.strike("full");
                if let Ok(space) = self.disk.space("/".as_ref()) {
                    let left = self.rng.below(1 << 20);
                    self.disk.set_room(space.total - space.available + left);
                }
                self.full_until = Some(self.step + 50 + self.rng.below(200) as u32);
            }
            48..80 if self.has(Part::Slow) => {
                self.strike("slow sync");
                let which = self.rng.below(self.slow.len() as u64) as usize;
                self.slow[which] = self.step + 10 + self.rng.below(60) as u32;
            }
            80..90 if self.has(Part::Steps) => {
                self.strike("clock set");
                let most = *self.rng.pick(&[50i64, 1000, 20_000]);
                let ms = self.rng.below(2 * most as u64) as i64 - most;
                self.time.set_by(ms);
            }
            90..110 => self.compare()?,
            _ => {}
        }
        Ok(())
    }

    /// Blocks leave the memory.
    pub(super) fn miss(&mut self, which: usize) {
        // Who needs several blocks has to find them together some time.
        if !self.has(Part::Misses) || !self.rng.chance(1, 3) {
            return;
        }
        let (salt, percent) = (self.rng.next_u64(), self.shared.plan.miss_percent);
        let Some(node) = &mut self.node else { return };
        if let Some(part) = node.parts.shards.get_mut(which) {
            let forgotten = part.runner.engine_mut().forget_blocks(|miss| {
                let mixed = (u64::from(miss.block) ^ miss.chunk.number << 20 ^ salt)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15);
                (mixed >> 33) % 100 < percent
            });
            *self.figures.faults.entry("miss").or_default() += forgotten as u64;
        }
    }

    /// The state that is live is the one that would be found.
    fn compare(&mut self) -> Result<(), Violation> {
        if !self.is_quiet() {
            return Ok(());
        }
        let Some(live) = self.live_digests() else { return Ok(()) };
        if let Some(found) = self.peek(None) {
            self.figures.compared += 1;
            if found != live {
                let what = format!("live {live:x?}, found on the disk {found:x?}");
                return Err(Violation::new(18, "digest", what));
            }
        }
        self.verify()
    }

    /// The node is asked to end, and does.
    pub(super) fn stop(&mut self) -> Result<(), Violation> {
        self.slow.fill(0);
        let Some(node) = &self.node else { return Ok(()) };
        let done = Arc::new(AtomicBool::new(false));
        let (broker, told) = (node.broker.clone(), done.clone());
        node.runtime.spawn(async move {
            broker.end_loops().await;
            told.store(true, Ordering::Relaxed);
        });
        let over = self.drive(3000, 1, |_| done.load(Ordering::Relaxed));
        if self.disk.is_off() || self.fallen {
            return self.get_up();
        }
        if !over && !self.has_excuse() {
            let what = "a node that was asked to end has not in 3 s".to_owned();
            return Err(Violation::new(16, "drain", what));
        }
        self.down("stop");
        self.boot()
    }

    /// Whether the node may fail to start, or to end, for something that was done to it.
    pub(super) fn has_excuse(&self) -> bool {
        self.full_until.is_some() || self.has(Part::Errors) || self.disk.is_off()
    }

    /// What befalls recovery; the digests that it has to come to, if they are known.
    pub(super) fn before_boot(&mut self) -> Option<Vec<u64>> {
        self.slow.fill(0);
        if self.figures.boots == 1 || self.disk.is_off() {
            return None;
        }
        // What was written and not synced is there after a start, and may be gone after one
        // that lost its power.
        let interrupts =
            self.has(Part::Recovery) && self.rng.chance(1, 2) && !self.disk.has_unsynced();
        let expected = match self.rng.chance(1, 3) {
            true => {
                let after = interrupts.then(|| 1 + self.rng.below(12));
                self.peek(after)
            }
            false => None,
        };
        let is_healed = self.shared.draining.load(Ordering::Relaxed);
        if self.has(Part::Recovery) && !is_healed && self.rng.chance(1, 4) {
            self.strike("power in recovery");
            let after = 1 + self.rng.below(15);
            self.disk.cut_power_after(after);
            self.power_fails = true;
        }
        expected
    }

    /// The next attempt has it easier.
    pub(super) fn after_failed_boot(&mut self) {
        self.down("start");
        self.disk.clear_faults();
        if self.full_until.take().is_some() {
            self.disk.set_room(ROOM);
        }
        if self.disk.is_off() {
            self.figures.power += 1;
            self.disk = self.disk.crash();
            self.power_fails = false;
            self.disk.short_io(self.has(Part::Short));
        }
    }

    /// Nothing goes wrong from now on.
    pub(super) fn heal(&mut self) {
        self.disk.clear_faults();
        self.disk.set_room(ROOM);
        self.full_until = None;
        self.answers_are_last = false;
        self.snapshot_is_last = None;
        self.disk.short_io(false);
        self.slow.fill(0);
    }
}
