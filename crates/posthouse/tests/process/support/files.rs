//! Directories: what is in them, and copies of them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// What is copied and looked at together.
const BLOCK: usize = 64 << 10;

/// All files below `dir`, by their path from there.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { dirs.push(path) } else { found.push(path) }
        }
    }
    let mut found: Vec<PathBuf> =
        found.iter().map(|path| path.strip_prefix(dir).expect("below it").to_owned()).collect();
    found.sort();
    found
}

/// The hash of every file below `dir`.
pub fn hashes(dir: &Path) -> BTreeMap<PathBuf, String> {
    let hash = |path: &PathBuf| {
        let digest = Sha256::digest(fs::read(dir.join(path)).expect("a file"));
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    files(dir).into_iter().map(|path| (path.clone(), hash(&path))).collect()
}

/// Copies a directory; blocks of zeros become holes.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for path in files(from) {
        let target = to.join(&path);
        fs::create_dir_all(target.parent().expect("a parent")).expect("a directory");
        let mut source = fs::File::open(from.join(&path)).expect("a file");
        let len = source.metadata().expect("a size").len();
        let mut copy = fs::File::create(&target).expect("a new file");
        copy.set_len(len).expect("room");
        let (mut at, mut block) = (0, vec![0; BLOCK]);
        while at < len {
            let n = (BLOCK as u64).min(len - at) as usize;
            source.read_exact(&mut block[..n]).expect("the size that it has");
            if block[..n].iter().any(|byte| *byte != 0) {
                copy.seek(SeekFrom::Start(at)).expect("a place in it");
                copy.write_all(&block[..n]).expect("room");
            }
            at += n as u64;
        }
    }
    // Directories that are empty are part of it.
    for dir in ["meta/log", "meta/chunks", "shard-0000/log", "shard-0000/chunks"] {
        if from.join(dir).is_dir() {
            fs::create_dir_all(to.join(dir)).expect("a directory");
        }
    }
}

/// Changes the bytes of a file.
pub fn patch(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).expect("a file");
    change(&mut bytes);
    fs::write(file, bytes).expect("room");
}

/// The only, or the first, file in `dir` whose name begins so.
pub fn named(dir: &Path, prefix: &str) -> PathBuf {
    all_named(dir, prefix).into_iter().next().unwrap_or_else(|| {
        panic!("no {prefix}* in {}", dir.display());
    })
}

/// The files in `dir` whose names begin so, in order.
pub fn all_named(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry"));
    let is_one = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(prefix);
    let mut found: Vec<PathBuf> = entries.filter(is_one).map(|entry| entry.path()).collect();
    found.sort();
    found
}
