//! What a process takes of the machine: memory, time of its processors, room.

use std::path::Path;

/// Memory that this process has in use, in bytes; `None` where the system does not say.
pub(super) fn rss_bytes() -> Option<u64> {
    rss_of("self")
}

/// Memory that a process has in use, in bytes.
pub(super) fn rss_of(process: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Seconds that the processors have worked for this process; `None` where the system
/// does not say. A thread that has ended no longer counts.
pub(super) fn cpu_seconds() -> Option<f64> {
    let mut nanos = 0u64;
    for entry in std::fs::read_dir("/proc/self/task").ok()? {
        let path = entry.ok()?.path().join("schedstat");
        // A thread may end while we look.
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        nanos += text.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(nanos as f64 / 1e9)
}

/// Files below a directory, and the bytes of the disk that they take.
pub(super) fn usage(dir: &Path) -> (u64, u64) {
    let (mut files, mut bytes) = (0, 0);
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            // A file may go while we look.
            let Ok(data) = entry.metadata() else { continue };
            if data.is_dir() {
                dirs.push(entry.path());
            } else {
                files += 1;
                bytes += room(&data);
            }
        }
    }
    (files, bytes)
}

/// Bytes of the disk that the files below a directory take.
pub(super) fn disk_bytes(dir: &Path) -> u64 {
    usage(dir).1
}

#[cfg(unix)]
fn room(data: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    data.blocks() * 512
}

#[cfg(not(unix))]
fn room(data: &std::fs::Metadata) -> u64 {
    data.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_counted_with_all_that_lies_below() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("below")).unwrap();
        std::fs::write(dir.path().join("below/file"), vec![1; 100_000]).unwrap();
        std::fs::write(dir.path().join("file"), vec![1; 10]).unwrap();
        let (files, bytes) = usage(dir.path());
        assert_eq!(files, 2);
        assert!(bytes >= 100_000, "{bytes}");
    }
}
