//! The simulated disk behind all handles: names, files, faults, power.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::inode::Inode;
use super::{Counts, Fault, Op};
use crate::files::FileError;
use crate::rng::Rng;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Dir,
    File(u64),
}

/// A change of names that is not certain to survive a power cut yet.
#[derive(Clone, Debug)]
enum NameChange {
    Put(PathBuf, Node),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        match self {
            NameChange::Put(path, node) => {
                names.insert(path.clone(), *node);
            }
            NameChange::Remove(path) => {
                names.remove(path);
            }
            NameChange::Rename(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
        }
    }

    fn touches(&self, dir: &Path) -> bool {
        match self {
            NameChange::Put(path, _) | NameChange::Remove(path) => path.parent() == Some(dir),
            NameChange::Rename(from, to) => from.parent() == Some(dir) || to.parent() == Some(dir),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct State {
    /// Counts power cuts; a handle from before one is dead.
    pub(super) boot: u64,
    pub(super) rng: Rng,
    pub(super) names: BTreeMap<PathBuf, Node>,
    durable_names: BTreeMap<PathBuf, Node>,
    unsynced: Vec<NameChange>,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    pub(super) locks: BTreeSet<PathBuf>,
    /// All the room there is.
    pub(super) room: u64,
    pub(super) faults: Vec<Fault>,
    pub(super) short: bool,
    /// Calls that change something and that may still be made before the power
    /// fails; `None` for no end.
    pub(super) power: Option<u64>,
    pub(super) counts: Counts,
    /// Syncs wait while this is set and no pass is left.
    pub(super) held: bool,
    pub(super) passes: u64,
    pub(super) waiting: u64,
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        let root = BTreeMap::from([(PathBuf::from("/"), Node::Dir)]);
        State {
            boot: 0,
            rng: Rng::new(seed),
            names: root.clone(),
            durable_names: root,
            unsynced: Vec::new(),
            inodes: BTreeMap::new(),
            next_inode: 1,
            locks: BTreeSet::new(),
            room: 1 << 40,
            faults: Vec::new(),
            short: false,
            power: None,
            counts: Counts::default(),
            held: false,
            passes: 0,
            waiting: 0,
        }
    }

    /// Counts a call and gives it the failure that was ordered for it, if any.
    pub(super) fn begin(&mut self, op: Op, verb: &'static str, path: &Path) -> Outcome {
        self.counts.add(op);
        let fail = |error: io::Error| FileError::new(verb, path, &error);
        if self.power == Some(0) {
            return Outcome::Refused(fail(no_power()));
        }
        if let Some(left) = self.power.as_mut().filter(|_| op != Op::Read) {
            *left -= 1;
            if *left == 0 {
                // The last call is under way as the power fails. Whether it still
                // had an effect is as open as whether that would survive.
                let error = fail(no_power());
                return match self.rng.chance(1, 2) {
                    true => Outcome::DoneButFailed(error),
                    false => Outcome::Refused(error),
                };
            }
        }
        match self.due_fault(op, path) {
            Some(errno) => Outcome::Failed(fail(io::Error::from_raw_os_error(errno))),
            None => Outcome::Fine,
        }
    }

    fn due_fault(&mut self, op: Op, path: &Path) -> Option<i32> {
        let name = path.to_string_lossy();
        let mut due = None;
        for fault in &mut self.faults {
            if fault.op != op || !name.contains(&fault.path) || fault.times == 0 {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
            } else {
                fault.times -= 1;
                due = due.or(Some(fault.errno));
            }
        }
        due
    }

    pub(super) fn has_unsynced(&self) -> bool {
        self.inodes.values().any(Inode::has_unsynced)
    }

    pub(super) fn inode(&mut self, id: u64) -> &mut Inode {
        self.inodes.entry(id).or_default()
    }

    pub(super) fn file(&self, path: &Path) -> Option<u64> {
        match self.names.get(path) {
            Some(Node::File(id)) => Some(*id),
            _ => None,
        }
    }

    pub(super) fn len_of(&self, id: u64) -> u64 {
        self.inodes.get(&id).map_or(0, Inode::len)
    }

    pub(super) fn room_left(&self) -> u64 {
        let named = self.names.values().filter_map(|node| match node {
            Node::File(id) => self.inodes.get(id).map(Inode::room),
            Node::Dir => None,
        });
        self.room.saturating_sub(named.sum())
    }

    pub(super) fn put(&mut self, path: &Path, node: Node) {
        self.change(NameChange::Put(path.to_owned(), node));
    }

    pub(super) fn new_file(&mut self, path: &Path) -> u64 {
        let id = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(id, Inode::default());
        self.put(path, Node::File(id));
        id
    }

    pub(super) fn remove(&mut self, path: &Path) {
        self.change(NameChange::Remove(path.to_owned()));
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) {
        self.change(NameChange::Rename(from.to_owned(), to.to_owned()));
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced.push(change);
    }

    pub(super) fn sync_dir(&mut self, dir: &Path) {
        let durable = &mut self.durable_names;
        self.unsynced.retain(|change| {
            let here = change.touches(dir);
            if here {
                change.apply(durable);
            }
            !here
        });
    }

    /// The power fails and comes back. Of the unsynced changes of names a prefix
    /// survives, as on a file system with a journal, or any choice of them.
    pub(super) fn crash(&mut self) {
        let changes = std::mem::take(&mut self.unsynced);
        let kept = self.rng.below(changes.len() as u64 + 1) as usize;
        let in_order = self.rng.chance(1, 2);
        for (at, change) in changes.iter().enumerate() {
            if if in_order { at < kept } else { self.rng.chance(1, 2) } {
                change.apply(&mut self.durable_names);
            }
        }
        let durable = self.durable_names.clone();
        let reachable =
            |path: &Path| path.ancestors().skip(1).all(|dir| durable.get(dir) == Some(&Node::Dir));
        self.durable_names.retain(|path, _| reachable(path));
        self.names = self.durable_names.clone();
        let named: BTreeSet<u64> = self.names.values().filter_map(as_file).collect();
        self.inodes.retain(|id, _| named.contains(id));
        for inode in self.inodes.values_mut() {
            inode.crash(&mut self.rng);
        }
        self.boot += 1;
        self.locks.clear();
        self.faults.clear();
        self.power = None;
        self.held = false;
    }
}

fn as_file(node: &Node) -> Option<u64> {
    match node {
        Node::File(id) => Some(*id),
        Node::Dir => None,
    }
}

/// How a call is going to end.
pub(super) enum Outcome {
    /// It works.
    Fine,
    /// It fails as a disk fails.
    Failed(FileError),
    /// It has its effect, and fails all the same.
    DoneButFailed(FileError),
    /// It has no effect.
    Refused(FileError),
}

pub(super) fn no_power() -> io::Error {
    io::Error::other("the simulated machine has no power")
}
