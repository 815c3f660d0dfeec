//! What is fuzzed: for each target a module with `run`, which takes any bytes and panics
//! if something does not hold, and `seeds`, valid examples to begin with.
//!
//! Every decoder has to refuse in words what it cannot read, to take memory in proportion
//! to what it is given, and to read what it has written as what it was. Where a checksum
//! stands before a decoder, the target makes it hold: a disk that flips a bit is stopped
//! by the checksum, and what comes behind it is meant here.

pub mod body;
pub mod catalog;
pub mod chunk;
pub mod cron;
pub mod filters;
pub mod frame;
pub mod grpc;
pub mod ids;
pub mod json;
pub mod log;
pub mod manifest;
mod memory;
pub mod names;
mod node;
pub mod pages;
pub mod record;
pub mod rocketmq;

use std::path::Path;

use posthouse_core::ident::Secret;
use posthouse_frame::varint::Cursor;

/// Valid examples of what a target takes, each under a name.
pub type Seeds = Vec<(&'static str, Vec<u8>)>;

/// Begins a target: its corpus in the repository has to be what its seeds are. With `SEEDS`
/// set to `write` it is written, and that is all.
///
/// # Panics
/// If it is another.
pub fn begin(target: &str, seeds: Seeds) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    if std::env::var_os("SEEDS").is_some_and(|what| what == "write") {
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("the corpus can be written");
        for (name, data) in &seeds {
            std::fs::write(dir.join(name), data).expect("the corpus can be written");
        }
        std::process::exit(0);
    }
    let count = std::fs::read_dir(&dir).map_or(0, Iterator::count);
    let is_same = |(name, data): &(&str, Vec<u8>)| {
        std::fs::read(dir.join(name)).is_ok_and(|kept| kept == *data)
    };
    let holds = count == seeds.len() && seeds.iter().all(is_same);
    assert!(holds, "{} is not what the seeds are: SEEDS=write fuzz/run {target}", dir.display());
}

/// The secret of the store that all of this is about.
fn secret() -> Secret {
    Secret::new([7; 32])
}

/// The bytes as a text: up to the first that is none.
fn text(data: &[u8]) -> &str {
    match std::str::from_utf8(data) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&data[..error.valid_up_to()]).expect("it is valid"),
    }
}

/// What is left of the first `n` bytes as a number, and the rest.
fn number<const N: usize>(data: &[u8]) -> Option<(u64, &[u8])> {
    let (head, rest) = data.split_first_chunk::<N>()?;
    let number = head.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    Some((number, rest))
}

/// The next piece of the input, with its length before it; cut where the input ends.
fn piece<'a>(c: &mut Cursor<'a>) -> &'a [u8] {
    let len = c.varint().unwrap_or(0).min(c.remaining() as u64);
    c.take(len as usize).unwrap_or_default()
}
