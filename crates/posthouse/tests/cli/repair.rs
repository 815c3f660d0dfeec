//! `data repair`: what keeps a node from starting is said, done only when asked for, and
//! nothing is thrown away.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{Ended, Node, alone, files};

fn data(what: &[&str], dir: &Path) -> Ended {
    alone(&[&["data"], what, &["--data", dir.to_str().unwrap()]].concat())
}

fn publish(node: &Node, from: u32, count: u32) {
    let lines: Vec<String> = (from..from + count).map(|n| format!("message {n}")).collect();
    node.cli_with(&["publish", "orders", "--lines", "-"], lines.join("\n")).ok();
}

/// A directory with two snapshots, and messages behind each of them.
fn store() -> tempfile::TempDir {
    let node = Node::start();
    node.cli(&["topic", "create", "orders"]).ok();
    node.cli(&["group", "create", "g", "--subscribe", "orders"]).ok();
    publish(&node, 0, 50);
    // A stop takes a snapshot.
    let node = node.restart_after(|| ());
    publish(&node, 50, 50);
    let node = node.restart_after(|| ());
    publish(&node, 100, 50);
    node.stop()
}

/// The messages that a node has which is started there.
fn messages(dir: &Path) -> Vec<String> {
    let page = Node::ask_on(dir, &["topic", "browse", "orders", "--limit", "1000", "--json"]).ok();
    let messages = page.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    messages.map(|message| message["body"].as_str().unwrap().to_owned()).collect()
}

fn all(count: u32) -> Vec<String> {
    (0..count).map(|n| format!("message {n}")).collect()
}

fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

/// Every file below a directory, with what is in it.
fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    files(dir, "").into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// It is said what would be done, with nothing changed; then it is done. Returns what is
/// lost, by what was said.
fn repaired(dir: &Path) -> Vec<Option<String>> {
    let before = content(dir);
    let said = data(&["repair", "--json"], dir);
    assert_eq!(said.code, 1, "{} {}", said.stdout, said.stderr);
    assert!(said.stderr.contains("nothing was done"), "{}", said.stderr);
    assert_eq!(content(dir), before, "nothing was changed");
    let done = data(&["repair", "--yes", "--json"], dir).json();
    assert_eq!((&done["sound"], &done["done"]), (&true.into(), &true.into()), "{done}");
    // What was there is there, or aside.
    let after = content(dir);
    let has = |bytes: &Vec<u8>| after.iter().any(|(_, found)| found == bytes);
    for (path, bytes) in &before {
        assert!(has(bytes), "{} is gone", path.display());
    }
    let steps = done["steps"].as_array().unwrap();
    steps.iter().map(|step| step["lost"].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_sound_directory_needs_no_repair() {
    let dir = store();
    let data_dir = dir.path().join("data");
    let before = content(&data_dir);
    for args in [&["repair"][..], &["repair", "--yes"]] {
        assert!(data(args, &data_dir).ok().contains("nothing keeps a node from starting"));
    }
    assert_eq!(content(&data_dir), before);
    data(&["repair"], &dir.path().join("nosuch")).failed(3, "is no data directory");
}

#[test]
fn manifests_that_are_missing_or_damaged_lose_nothing_as_long_as_the_log_is_there() {
    for damage in ["newest flipped", "all flipped", "all gone"] {
        let dir = store();
        let data_dir = dir.path().join("data");
        for part in ["meta", "shard-0000"] {
            let manifests = files(&data_dir.join(part), "manifest-");
            assert_eq!(manifests.len(), 2);
            match damage {
                "newest flipped" => flip(&manifests[1], 30),
                "all flipped" => manifests.iter().for_each(|manifest| flip(manifest, 30)),
                _ => manifests.iter().for_each(|manifest| std::fs::remove_file(manifest).unwrap()),
            }
        }
        assert_eq!(repaired(&data_dir), [None, None], "{damage}");
        assert_eq!(messages(&data_dir), all(150), "{damage}");
        assert_eq!(data(&["verify"], &data_dir).code, 0, "{damage}");
    }
}

#[test]
fn any_chunk_that_is_damaged_or_missing_loses_nothing_as_long_as_the_log_is_there() {
    let dir = store();
    let data_dir = dir.path().join("data");
    let chunks = files(&data_dir, "c-").len();
    assert!(chunks >= 4);
    for at in 0..chunks {
        let dir = store();
        let data_dir = dir.path().join("data");
        let chunk = &files(&data_dir, "c-")[at];
        match at % 2 {
            0 => flip(chunk, 5),
            _ => std::fs::remove_file(chunk).unwrap(),
        }
        if data(&["repair"], &data_dir).code == 0 {
            // Only the snapshot before needs it, and that is not needed.
            continue;
        }
        assert_eq!(repaired(&data_dir), [None], "{}", chunk.display());
        assert_eq!(messages(&data_dir), all(150), "{}", chunk.display());
    }
}

/// Where a frame stands that has some message, in the only segment of the shard.
fn frame_of(segment: &Path, message: &str) -> usize {
    let bytes = std::fs::read(segment).unwrap();
    let at = bytes.windows(message.len()).position(|window| window == message.as_bytes()).unwrap();
    at / 4096 * 4096
}

#[test]
fn a_log_that_is_damaged_behind_the_snapshot_ends_there_and_it_is_said_what_stood_behind() {
    let node = Node::start();
    node.cli(&["topic", "create", "orders"]).ok();
    publish(&node, 0, 50);
    let node = node.restart_after(|| ());
    for n in 50..60 {
        publish(&node, n, 1);
    }
    // Killed: what follows the snapshot is only in the log.
    let dir = node.kill();
    let data_dir = dir.path().join("data");
    let segment = files(&data_dir.join("shard-0000"), "seg-").remove(0);
    flip(&segment, frame_of(&segment, "message 55") + 20);
    let refused = Node::refused_on(&data_dir);
    assert!(refused.contains("`posthouse data repair` says what can be done"), "{refused}");
    let lost = repaired(&data_dir);
    let lost = lost[0].as_ref().unwrap();
    assert!(lost.contains("to the end of the log") && lost.contains("records"), "{lost}");
    assert_eq!(messages(&data_dir), all(55));
    assert_eq!(data(&["verify"], &data_dir).code, 0);
    let aside = files(&data_dir, "report.txt").remove(0);
    assert!(std::fs::read_to_string(aside).unwrap().contains("lost:   everything from frame"));
}

#[test]
fn what_cannot_be_repaired_is_said() {
    let dir = store();
    let data_dir = dir.path().join("data");
    flip(&data_dir.join("secret"), 3);
    data(&["repair", "--yes"], &data_dir).failed(1, "Nothing can be done about that");
    flip(&data_dir.join("secret"), 3);
    let shard = data_dir.join("shard-0000");
    files(&shard, "manifest-").iter().for_each(|path| std::fs::remove_file(path).unwrap());
    let segment = files(&shard, "seg-").remove(0);
    let aside = dir.path().join("aside");
    std::fs::rename(&segment, &aside).unwrap();
    std::fs::write(shard.join("log/seg-00000000000000000009.log"), vec![0; 20 << 20]).unwrap();
    let before = content(&data_dir);
    let ended = data(&["repair", "--yes"], &data_dir);
    assert!(
        ended.stdout.contains("cannot; bring the files back from a backup"),
        "{}",
        ended.stdout
    );
    ended.failed(1, "a node will not start on it");
    assert_eq!(content(&data_dir), before);
}

/// A store whose log has several segments, each with messages of 3 MiB; with a snapshot
/// behind them, if it is `stopped`.
fn large(stopped: bool) -> tempfile::TempDir {
    let node = Node::start();
    node.cli(&["topic", "create", "orders"]).ok();
    publish(&node, 0, 5);
    let node = node.restart_after(|| ());
    for n in 0..16u8 {
        node.cli_with(&["publish", "orders", "-"], vec![b'a' + n; 3 << 20]).ok();
    }
    if stopped { node.stop() } else { node.kill() }
}

/// Positions of messages that can be looked at, from one on.
fn positions(dir: &Path, from: &str) -> Vec<u64> {
    let page = Node::ask_on(
        dir,
        &["topic", "browse", "orders", "--partition", "0", "--from", from, "--json"],
    );
    let page = page.ok();
    let messages = page.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    messages.map(|message| message["position"].as_u64().unwrap()).collect()
}

#[test]
fn without_a_segment_that_the_snapshot_needs_only_what_stood_in_it_is_lost() {
    for damage in ["gone", "header"] {
        let dir = large(true);
        let data_dir = dir.path().join("data");
        let segments = files(&data_dir.join("shard-0000"), "seg-");
        assert!(segments.len() >= 3, "{segments:?}");
        match damage {
            "gone" => std::fs::rename(&segments[0], dir.path().join("gone")).unwrap(),
            _ => flip(&segments[0], 20),
        }
        assert!(Node::refused_on(&data_dir).contains("data repair"));
        let lost = repaired(&data_dir);
        let lost = lost[0].as_ref().unwrap();
        assert!(lost.contains("the bodies of messages that stood in segment 1"), "{lost}");
        assert_eq!(positions(&data_dir, "15"), (15..21).collect::<Vec<_>>(), "{damage}");
    }
}

#[test]
fn without_a_segment_behind_the_snapshot_the_log_ends_before_it() {
    let dir = large(false);
    let data_dir = dir.path().join("data");
    let segments = files(&data_dir.join("shard-0000"), "seg-");
    assert!(segments.len() >= 3, "{segments:?}");
    std::fs::rename(&segments[1], dir.path().join("gone")).unwrap();
    assert!(Node::refused_on(&data_dir).contains("data repair"));
    let lost = repaired(&data_dir);
    assert!(lost[0].as_ref().unwrap().contains("to the end of the log"), "{lost:?}");
    let left = positions(&data_dir, "0");
    assert_eq!(left, (0..left.len() as u64).collect::<Vec<_>>());
    assert!((6..15).contains(&left.len()), "those of the first segment: {left:?}");
    assert_eq!(data(&["verify"], &data_dir).code, 0);
}
