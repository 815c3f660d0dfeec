//! `data`: directories of nodes that run, and of nodes that do not.

use std::path::Path;

use serde_json::Value;

use crate::harness::{Ended, Node, alone, files};

/// A node that has had something of everything.
fn filled() -> Node {
    let node = Node::start();
    node.cli(&["topic", "create", "orders", "--partitions", "2"]).ok();
    node.cli(&["group", "create", "g", "--subscribe", "orders"]).ok();
    for n in 0..20 {
        let body = format!("message number {n}");
        node.cli(&["publish", "orders", &body, "--key", &format!("k{}", n % 3)]).ok();
    }
    node.cli(&["publish", "orders", "comes later", "--delay", "1d"]).ok();
    node.cli(&["consume", "g", "--max", "5"]).ok();
    node
}

fn data(what: &[&str], dir: &Path) -> Ended {
    let dir = dir.to_str().unwrap();
    alone(&[&["data"], what, &["--data", dir]].concat())
}

fn verify(dir: &Path) -> (Value, i32) {
    let ended = data(&["verify", "--json"], dir);
    (serde_json::from_str(&ended.stdout).unwrap(), ended.code)
}

/// Turns one bit of a file.
fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

/// Where some bytes stand in a file.
fn place_of(file: &Path, what: &[u8]) -> usize {
    let bytes = std::fs::read(file).unwrap();
    bytes.windows(what.len()).position(|window| window == what).expect("it is in there")
}

#[test]
fn everything_holds_in_a_directory_that_nothing_has_happened_to() {
    let node = filled();
    let (report, code) = verify(&node.data());
    assert_eq!((code, &report["clean"]), (0, &true.into()), "while the node runs: {report}");
    assert!(report["parts"][1]["frames"].as_u64().unwrap() > 20, "{report}");
    let dir = node.stop();
    let dir = dir.path().join("data");
    let (report, code) = verify(&dir);
    assert_eq!((code, &report["clean"]), (0, &true.into()), "after it has ended: {report}");
    assert!(report["parts"][1]["chunks"].as_u64().unwrap() >= 2, "pages and an index: {report}");
    let said = data(&["verify"], &dir).ok();
    assert!(said.contains("everything holds\n"), "{said}");
    assert!(said.starts_with("PART        MANIFESTS"), "{said}");
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is_with_file_and_offset() {
    let dir = filled().stop();
    let dir = dir.path().join("data");
    let segment = files(&dir.join("shard-0000"), "seg-").remove(0);
    let body = place_of(&segment, b"message number 7");
    let chunk = files(&dir.join("shard-0000"), "c-").remove(0);
    let meta_chunk = files(&dir.join("meta"), "c-").remove(0);
    let manifest = files(&dir.join("shard-0000"), "manifest-").pop().unwrap();
    let len = |file: &Path| std::fs::metadata(file).unwrap().len() as usize;
    let places = [
        (segment.clone(), body),
        (segment.clone(), 4096 + 8),
        (segment.clone(), 20),
        (chunk.clone(), 0),
        (chunk.clone(), len(&chunk) - 33),
        (chunk.clone(), len(&chunk) - 1),
        (meta_chunk, 3),
        (manifest.clone(), 30),
        (dir.join("store.json"), 40),
        (dir.join("secret"), 5),
    ];
    for (file, at) in places {
        flip(&file, at);
        let (report, code) = verify(&dir);
        let findings = report["findings"].as_array().unwrap();
        assert_eq!(code, 1, "byte {at} of {}: {report}", file.display());
        assert_eq!(report["clean"], false);
        // Of store.json and secret only one checksum is kept.
        let named = |finding: &Value| {
            let found = Path::new(finding["file"].as_str().unwrap());
            found == file
                || (at < 50 && found.parent() == Some(&dir) && file.parent() == Some(&dir))
        };
        let of_file = findings.iter().find(|finding| named(finding));
        let of_file = of_file.unwrap_or_else(|| panic!("{}: {report}", file.display()));
        assert!(of_file["offset"].is_u64(), "{of_file}");
        if at == body {
            let offset = of_file["offset"].as_u64().unwrap() as usize;
            assert!(offset < body && body - offset < 64, "the body at {body}: {of_file}");
        }
        let ended = data(&["verify"], &dir);
        assert!(ended.stdout.contains("DAMAGED "), "{}", ended.stdout);
        ended.failed(1, "is damaged: ");
        flip(&file, at);
    }
    assert_eq!(verify(&dir).1, 0, "as it was before");
}

#[test]
fn a_file_that_is_missing_or_cut_is_found() {
    let dir = filled().stop();
    let dir = dir.path().join("data");
    let shard = dir.join("shard-0000");
    let gone = |file: &Path, expected: &str| {
        let aside = dir.parent().unwrap().join("aside");
        std::fs::rename(file, &aside).unwrap();
        let (report, code) = verify(&dir);
        let text = report["findings"].to_string();
        assert_eq!(code, 1, "{}: {report}", file.display());
        assert!(text.contains(expected), "{expected} is not in {text}");
        std::fs::rename(&aside, file).unwrap();
    };
    gone(&files(&shard, "seg-")[0], "missing");
    let chunks = files(&shard, "c-");
    assert!(chunks.len() >= 3, "pages, an index and a run of the schedule: {chunks:?}");
    chunks.iter().for_each(|chunk| gone(chunk, "missing"));
    gone(&dir.join("secret"), "secret");
    gone(&dir.join("store.json"), "store.json");
    gone(&shard, "the directory is missing");
    let chunk = files(&shard, "c-").remove(0);
    let bytes = std::fs::read(&chunk).unwrap();
    std::fs::write(&chunk, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(verify(&dir).1, 1);
    std::fs::write(&chunk, bytes).unwrap();
    assert_eq!(verify(&dir).1, 0, "as it was before");
}

#[test]
fn what_is_no_data_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for what in ["verify", "stats", "dump"] {
        data(&[what], &dir.path().join("nosuch")).failed(3, "is no data directory of Posthouse");
        data(&[what], dir.path()).failed(3, "it has no store.json");
    }
    assert!(dir.path().read_dir().unwrap().next().is_none(), "and nothing was made in it");
    let newer = r#"{"format":99,"store":"00","shards":1,"more":true}"#;
    std::fs::write(dir.path().join("store.json"), newer).unwrap();
    data(&["verify"], dir.path()).failed(1, "has format 99; this release reads up to 1");
}

#[test]
fn messages_and_bytes_are_counted_while_the_node_runs_and_after() {
    let node = filled();
    node.cli(&["topic", "purge", "orders", "--partition", "0"]).ok();
    let left = node.cli(&["topic", "show", "orders", "--json"]).json()["messages"].clone();
    let live = data(&["stats", "--json"], &node.data()).json();
    let dir = node.stop();
    let dir = dir.path().join("data");
    let after = data(&["stats", "--json"], &dir).json();
    for stats in [&live, &after] {
        assert_eq!((&stats["topics"], &stats["groups"]), (&1.into(), &1.into()), "{stats}");
        let shard = &stats["parts"][1];
        assert_eq!(shard["name"], "shard-0000");
        assert_eq!(shard["messages"], left, "{stats}");
        assert_eq!(shard["partitions"], 2);
        assert_eq!(shard["segments"], 1);
        assert!(shard["live_bytes"].as_u64() >= shard["message_bytes"].as_u64(), "{stats}");
        assert!(shard["frame_bytes"].as_u64() > shard["body_bytes"].as_u64(), "{stats}");
    }
    // A running node may have had no reason yet for more than its first.
    assert!(live["parts"][1]["snapshot_frame"].as_u64() <= Some(1), "{live}");
    assert!(after["parts"][1]["snapshot_frame"].as_u64() > Some(20), "{after}");
    let table = data(&["stats"], &dir).ok();
    assert!(table.contains("\nPART        SEGMENTS  SPARES"), "{table}");
}

#[test]
fn records_are_dumped_with_names_and_filters() {
    let node = filled();
    let dump = |args: &[&str]| data(&[&["dump", "--json"], args].concat(), &node.data()).objects();
    let records = |frames: &[Value]| -> Vec<Value> {
        frames.iter().flat_map(|f| f["records"].as_array().unwrap().clone()).collect()
    };
    let meta = records(&dump(&["--shard", "meta"]));
    assert!(meta.iter().any(|r| r["record"] == "group" && r["name"] == "g"), "{meta:?}");
    let all = dump(&["--shard", "0"]);
    assert!(all.iter().any(|frame| frame["kind"] == "epoch"));
    // Keys choose partitions: one of them may have nothing.
    let all_records = records(&all);
    let some = all_records.iter().find(|r| r["record"] == "publish").unwrap();
    let number = some["partition"].as_u64().unwrap();
    let partition = number.to_string();
    let of_one = records(&dump(&["--topic", "orders", "--partition", &partition, "--bodies"]));
    let is_of_it = |r: &Value| r["topic"] == "orders" && r["partition"] == number;
    assert!(of_one.iter().all(is_of_it), "{of_one:?}");
    let published: Vec<&Value> = of_one.iter().filter(|r| r["record"] == "publish").collect();
    assert!(published[0]["messages"][0]["body"].as_str().unwrap().starts_with("message number "));
    assert!(published[0]["messages"][0]["key"].is_string());
    assert!(of_one.iter().any(|r| r["record"] == "attach" && r["group"] == "g"));
    let from = dump(&["--shard", "0", "--from", "5", "--to", "7"]);
    assert!(from.iter().all(|f| (5..=7).contains(&f["frame"].as_u64().unwrap())), "{from:?}");
    assert_eq!(dump(&["--limit", "3"]).len(), 3);

    let text = data(&["dump", "--topic", "orders", "--bodies"], &node.data()).ok();
    assert!(text.contains("    publish topic=orders partition="), "{text}");
    assert!(text.contains(" body=\"message number 3\" key=k0"), "{text}");
    assert!(text.contains("    ack group=g topic=orders partition="), "{text}");
    data(&["dump", "--topic", "nosuch"], &node.data()).failed(3, "there is no topic \"nosuch\"");
    data(&["dump", "--shard", "7"], &node.data()).failed(3, "there is no such shard");

    let dir = node.stop();
    let dir = dir.path().join("data");
    let segment = files(&dir.join("shard-0000"), "seg-").remove(0);
    flip(&segment, place_of(&segment, b"message number 7"));
    let ended = data(&["dump", "--bodies"], &dir);
    assert!(ended.stdout.contains("message number 8"), "it goes on behind the damage");
    assert!(ended.stderr.contains("corrupt data in "), "{}", ended.stderr);
    ended.failed(1, "`posthouse data verify` shows all damage");
}

/// What a directory has of a topic.
fn browse_of(dir: &Path) -> String {
    Node::ask_on(dir, &["topic", "browse", "orders", "--json"]).ok()
}

#[test]
fn a_directory_is_backed_up_and_copied_and_a_node_has_the_same_on_both() {
    let dir = filled().stop();
    let root = dir.path();
    let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
    let from = root.join("data");
    let made = data(&["backup", &path("backup"), "--json"], &from).json();
    assert_eq!((&made["damaged"], &made["directory"]), (&0.into(), &path("backup").into()));
    let copied = alone(&["data", "copy", &path("data"), &path("copy")]).ok();
    assert!(copied.contains(" files, ") && copied.contains(&path("copy")), "{copied}");
    assert!(root.join("backup/backup.json").exists() && !root.join("copy/backup.json").exists());
    assert_eq!((verify(&root.join("backup")).1, verify(&root.join("copy")).1), (0, 0));

    // A backup is held against its list: also where no checksum of its own covers a file.
    let segment = files(&root.join("backup/shard-0000"), "seg-").remove(0);
    let end = std::fs::metadata(&segment).unwrap().len() as usize - 100_000;
    flip(&segment, end);
    let (report, code) = verify(&root.join("backup"));
    assert_eq!(code, 1, "{report}");
    assert!(report["findings"][0]["what"].as_str().unwrap().contains("backup.json says"));
    flip(&segment, end);

    data(&["backup", &path("backup")], &from).failed(3, "is not empty");
    data(&["backup", &path("none")], &root.join("nosuch")).failed(3, "is no data directory");
    // From a backup, too: this is how one is brought back.
    alone(&["data", "copy", &path("backup"), &path("back")]).ok();
    let there = browse_of(&from);
    assert_eq!(there.matches("message number ").count(), 20, "{there}");
    for copy in ["backup", "copy", "back"] {
        assert_eq!(browse_of(&root.join(copy)), there, "{copy}");
    }
}

#[test]
fn a_running_node_is_asked_for_its_backup() {
    let node = filled();
    let to = node.data().parent().unwrap().join("backup");
    let to = to.to_str().unwrap();
    data(&["backup", to], &node.data()).failed(5, "or ask the node for the backup, with --url");
    let made = alone(&["data", "backup", to, "--url", &node.url, "--json"]).json();
    assert_eq!(made["damaged"], 0, "{made}");
    assert_eq!(verify(Path::new(to)).1, 0);
    let refused = alone(&["data", "backup", to, "--url", &node.url]);
    refused.failed(3, "is not empty");
}

#[test]
fn damage_is_copied_and_told() {
    let dir = filled().stop();
    let from = dir.path().join("data");
    let segment = files(&from.join("shard-0000"), "seg-").remove(0);
    flip(&segment, place_of(&segment, b"message number 7"));
    let to = dir.path().join("backup");
    let ended = data(&["backup", to.to_str().unwrap()], &from);
    assert!(ended.stdout.contains("DAMAGED "), "{}", ended.stdout);
    ended.failed(1, "with 1 place that do not hold");
    assert_eq!(verify(&to).1, 1);
}

#[test]
fn a_copy_that_was_cut_short_is_known_for_that() {
    let dir = filled().stop();
    let (from, to) = (dir.path().join("data"), dir.path().join("copy"));
    alone(&["data", "copy", from.to_str().unwrap(), to.to_str().unwrap()]).ok();
    let unfinished = r#"{"format":1,"complete":false,"store":"00","begun_at_ms":1,"made_by":"x"}"#;
    std::fs::write(to.join("backup.json"), unfinished).unwrap();
    let (report, code) = verify(&to);
    assert_eq!(code, 1);
    assert!(report["findings"][0]["what"].as_str().unwrap().contains("was cut short"), "{report}");
    alone(&["data", "copy", to.to_str().unwrap(), dir.path().join("b").to_str().unwrap()])
        .failed(3, "that was cut short");
}
