//! Bugs that are put in on purpose, to see whether checkers find them. One at a time is
//! active, in the thread that has planted it.

use std::cell::Cell;

thread_local! {
    static ACTIVE: Cell<&'static str> = const { Cell::new("") };
}

/// Makes one bug active in this thread; none, with an empty name.
pub fn plant(name: &'static str) {
    ACTIVE.set(name);
}

/// Whether a bug is active.
pub fn planted(name: &str) -> bool {
    ACTIVE.get() == name
}
