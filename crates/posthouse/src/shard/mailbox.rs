//! Where commands wait for a shard's thread.
//!
//! Any number of senders, one receiver, which takes everything that waits at once:
//! batches come from that. Mail is sorted by class; a full class of publishes does
//! not stand before an acknowledgement.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How many classes there are.
pub const CLASSES: usize = 4;

/// What waits, by class.
pub type Classes<T> = [VecDeque<T>; CLASSES];

#[derive(Debug)]
struct State<T> {
    classes: Classes<T>,
    /// The receiver sleeps, and has to be woken.
    asleep: bool,
    /// The bell has rung since the receiver last looked.
    rung: bool,
    closed: bool,
}

#[derive(Debug)]
struct Inner<T> {
    state: Mutex<State<T>>,
    bell: Condvar,
}

/// The sending end; cheap to clone.
#[derive(Debug)]
pub struct Mailbox<T> {
    inner: Arc<Inner<T>>,
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Mailbox { inner: self.inner.clone() }
    }
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        let state =
            State { classes: Default::default(), asleep: false, rung: false, closed: false };
        Mailbox { inner: Arc::new(Inner { state: Mutex::new(state), bell: Condvar::new() }) }
    }
}

impl<T> Mailbox<T> {
    fn lock(&self) -> std::sync::MutexGuard<'_, State<T>> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves something for the receiver. Gives it back if nobody will take it.
    ///
    /// # Errors
    /// The mail, if the box is closed.
    pub fn send(&self, class: usize, mail: T) -> Result<(), T> {
        let mut state = self.lock();
        if state.closed {
            return Err(mail);
        }
        state.classes[class].push_back(mail);
        let wake = std::mem::replace(&mut state.asleep, false);
        drop(state);
        if wake {
            self.inner.bell.notify_one();
        }
        Ok(())
    }

    /// Takes everything that waits, behind what `into` holds. If there is nothing,
    /// waits for up to `patience` (`None`: for as long as it takes).
    pub fn take(&self, into: &mut Classes<T>, patience: Option<Duration>) {
        let mut state = self.lock();
        let nothing = state.classes.iter().all(VecDeque::is_empty) && !state.rung;
        if nothing && patience != Some(Duration::ZERO) {
            state.asleep = true;
            let waited = match patience {
                None => self
                    .inner
                    .bell
                    .wait_while(state, |state| state.asleep)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(patience) => {
                    self.inner
                        .bell
                        .wait_timeout_while(state, patience, |state| state.asleep)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
            state = waited;
            state.asleep = false;
        }
        state.rung = false;
        for (into, from) in into.iter_mut().zip(&mut state.classes) {
            if into.is_empty() {
                std::mem::swap(into, from);
            } else {
                into.append(from);
            }
        }
    }

    /// Wakes the receiver although there is nothing for it.
    pub fn ring(&self) {
        let mut state = self.lock();
        state.rung = true;
        let wake = std::mem::replace(&mut state.asleep, false);
        drop(state);
        if wake {
            self.inner.bell.notify_one();
        }
    }

    /// Takes no more mail. What waits is returned.
    pub fn close(&self) -> Classes<T> {
        let mut state = self.lock();
        state.closed = true;
        std::mem::take(&mut state.classes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_waits_is_taken_at_once_by_class() {
        let mailbox = Mailbox::default();
        for (class, mail) in [(3, "c"), (0, "a"), (3, "d"), (1, "b")] {
            mailbox.send(class, mail).unwrap();
        }
        let mut classes = Classes::default();
        mailbox.take(&mut classes, None);
        mailbox.send(3, "e").unwrap();
        mailbox.take(&mut classes, None);
        let all: Vec<&str> = classes.iter().flatten().copied().collect();
        assert_eq!(all, ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn a_receiver_that_waits_is_woken_by_mail_and_by_the_bell() {
        let mailbox: Mailbox<u32> = Mailbox::default();
        let sender = mailbox.clone();
        let thread = std::thread::spawn(move || {
            sender.send(0, 7).unwrap();
        });
        let mut classes = Classes::default();
        while classes[0].is_empty() {
            mailbox.take(&mut classes, None);
        }
        thread.join().unwrap();
        let began = std::time::Instant::now();
        mailbox.ring();
        mailbox.take(&mut classes, Some(Duration::from_secs(10)));
        assert!(began.elapsed() < Duration::from_secs(5), "a bell that rang before is heard");
    }

    #[test]
    fn a_closed_box_gives_mail_back() {
        let mailbox = Mailbox::default();
        mailbox.send(0, 1).unwrap();
        assert_eq!(mailbox.close()[0], [1]);
        assert_eq!(mailbox.send(0, 2), Err(2));
    }
}
