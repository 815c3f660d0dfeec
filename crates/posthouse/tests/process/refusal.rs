//! Directories that a node does not take, and leaves as they are.

use std::fs;
use std::path::{Path, PathBuf};

use posthouse_client::ReceiveOptions;
use posthouse_frame::header::HEADER_BYTES;
use posthouse_frame::{Salt, crc32c};
use posthouse_log::Part;
use posthouse_log::files::RealFiles;
use posthouse_log::local::inspect;

use crate::support::files::{all_named, copy, hashes, named, patch};
use crate::support::node::{Ended, Setup};
use crate::{crash, support::web};

/// A data directory in which something has happened, snapshots included; ended with
/// signal 9, with frames behind the last snapshot.
async fn used() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let setup = Setup::new(&data);
    for _ in 0..2 {
        let node = setup.start().await;
        let client = node.client().await;
        for n in 0..5 {
            client.publish("t", format!("message {n}")).await.unwrap();
        }
        let topic = Some("t".to_owned());
        let options = ReceiveOptions { max: 3, topic, ..ReceiveOptions::default() };
        let got = client.receive("g", &options).await.unwrap();
        client.ack("g", got.into_iter().map(|d| d.receipt)).await.unwrap();
        node.stop().await;
    }
    let node = setup.start().await;
    node.client().await.publish("t", "the last one").await.unwrap();
    node.kill().await;
    (dir, data)
}

/// The node refuses `data`, says these words, and has changed nothing.
async fn refuses(data: &Path, code: i32, words: &[&str]) -> Ended {
    let before = hashes(data);
    let ended = Setup::new(data).refused().await;
    assert_eq!(ended.code, Some(code), "{ended:#?}");
    for word in words {
        assert!(ended.said.contains(word), "it does not say {word:?}: {}", ended.said);
    }
    let after = hashes(data);
    let changed: Vec<&PathBuf> = after
        .iter()
        .filter(|(path, hash)| before.get(*path) != Some(hash))
        .map(|(path, _)| path)
        .chain(before.keys().filter(|path| !after.contains_key(*path)))
        .collect();
    assert!(changed.is_empty(), "it has refused, and changed {changed:?}");
    ended
}

/// A copy of a directory, changed.
fn changed(data: &Path, name: &str, change: impl FnOnce(&Path)) -> PathBuf {
    let to = data.with_file_name(name);
    copy(data, &to);
    change(&to);
    to
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_a_directory_is_refused_and_the_first_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path());
    let node = setup.start().await;
    let client = node.client().await;
    client.publish("t", "one").await.unwrap();
    let second = setup.refused().await;
    assert_eq!(second.code, Some(1), "{second:#?}");
    let path = dir.path().display().to_string();
    for word in ["in use by another process", "--data", path.as_str()] {
        assert!(second.said.contains(word), "{word}: {}", second.said);
    }
    client.publish("t", "two").await.unwrap();
    assert_eq!(crash::browse(&node, "t", 0).await.len(), 2);
    node.kill().await;
    // A lock does not outlive its holder.
    let node = setup.start().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("thesis.txt"), "years of work").unwrap();
    refuses(&data, 1, &["store.json", "not a data directory", "--data"]).await;
    // Nor is the rest of one.
    let (_dir, used) = used().await;
    let rest = changed(&used, "rest", |data| fs::remove_file(data.join("store.json")).unwrap());
    refuses(&rest, 1, &["store.json", "not a data directory"]).await;
    // Nor is a file, nor what is nowhere.
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let ended = Setup::new(&file).refused().await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.said.contains(file.to_str().unwrap()), "{}", ended.said);
    let nowhere = dir.path().join("no/such/parent");
    let ended = Setup::new(&nowhere).refused().await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.said.contains(nowhere.to_str().unwrap()), "{}", ended.said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_newer_release_has_written_is_refused_with_words() {
    let (_dir, used) = used().await;
    let words = ["format 2", "newer release"];
    let newer = changed(&used, "newer-store", |data| {
        let text = fs::read_to_string(data.join("store.json")).unwrap();
        let text = text.replace("\"format\": 1", "\"format\": 2, \"compression\": \"zstd\"");
        fs::write(data.join("store.json"), text).unwrap();
    });
    refuses(&newer, 1, &words).await;
    for part in ["meta", "shard-0000"] {
        let newer = changed(&used, &format!("newer-manifest-{part}"), |data| {
            let newest = all_named(&data.join(part), "manifest-").pop().unwrap();
            patch(&newest, |bytes| {
                bytes[4] = 2;
                let end = bytes.len() - 4;
                let crc = crc32c(&bytes[..end]);
                bytes[end..].copy_from_slice(&crc.to_le_bytes());
            });
        });
        refuses(&newer, 1, &words).await;
        let newer = changed(&used, &format!("newer-segment-{part}"), |data| {
            patch(&named(&data.join(part).join("log"), "seg-"), |bytes| {
                bytes[8] = 2;
                let crc = crc32c(&bytes[8..4096]);
                bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            });
        });
        refuses(&newer, 1, &["layout 2", "newer release"]).await;
        // The layout of a frame, and what may stand in its records.
        for (at, name, words) in [
            (8, "frame", ["layout 2", "newer release"]),
            (76, "reader", ["format 2", "newer release"]),
        ] {
            let newer = changed(&used, &format!("newer-{name}-{part}"), |data| {
                patch_last_frame(data, part, |header| header[at] = 2);
            });
            refuses(&newer, 1, &words).await;
        }
    }
}

/// Changes the header of the last frame of a log; its checksum holds again.
fn patch_last_frame(data: &Path, part: &str, change: impl FnOnce(&mut [u8])) {
    let store: serde_json::Value =
        serde_json::from_slice(&fs::read(data.join("store.json")).unwrap()).unwrap();
    let store = u64::from_str_radix(store["store"].as_str().unwrap(), 16).unwrap();
    let log = data.join(part).join("log");
    let units = inspect(RealFiles::shared(), &log, store, Part::Meta).unwrap();
    let is_frame =
        |unit: &posthouse_log::local::Inspected| unit.header.kind != posthouse_frame::Kind::Mark;
    let last = units.map(Result::unwrap).filter(is_frame).last().unwrap();
    let file = log.join(format!("seg-{:020}.log", last.segment.0));
    patch(&file, |bytes| {
        let header = &mut bytes[last.offset as usize..][..HEADER_BYTES];
        change(header);
        let salt = Salt { store, segment: last.segment.0, offset: last.offset };
        let crc = salt.crc(&header[8..]);
        header[4..8].copy_from_slice(&crc.to_le_bytes());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_secret_or_with_another_one_a_store_is_refused() {
    let (_dir, used) = used().await;
    let missing = changed(&used, "missing", |data| fs::remove_file(data.join("secret")).unwrap());
    refuses(&missing, 1, &["secret"]).await;
    let short = changed(&used, "short", |data| {
        patch(&data.join("secret"), |bytes| bytes.truncate(32));
    });
    refuses(&short, 1, &["secret", "damaged"]).await;
    let (_other_dir, other) = self::used().await;
    let foreign = changed(&used, "foreign", |data| {
        fs::copy(other.join("secret"), data.join("secret")).unwrap();
    });
    refuses(&foreign, 1, &["secret", "damaged"]).await;
    // Nor does a part of another store pass for its own.
    let mixed = changed(&used, "mixed", |data| {
        fs::remove_dir_all(data.join("shard-0000")).unwrap();
        copy(&other.join("shard-0000"), &data.join("shard-0000"));
    });
    refuses(&mixed, 1, &["shard-0000", "belongs to"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_usable_manifest_a_store_is_refused_and_with_the_older_one_it_goes_on() {
    let (_dir, used) = used().await;
    for part in ["meta", "shard-0000"] {
        let manifests = |data: &Path| {
            let found = all_named(&data.join(part), "manifest-");
            assert_eq!(found.len(), 2, "two snapshots are kept");
            found
        };
        let none = changed(&used, &format!("none-{part}"), |data| {
            manifests(data).iter().for_each(|file| fs::remove_file(file).unwrap());
        });
        refuses(&none, 1, &[part, "manifest", "data verify"]).await;
        let both = changed(&used, &format!("both-{part}"), |data| {
            for file in manifests(data) {
                patch(&file, |bytes| bytes[30] ^= 1);
            }
        });
        refuses(&both, 1, &["manifest-", "damaged", "data verify"]).await;
        let newest = changed(&used, &format!("newest-{part}"), |data| {
            patch(&manifests(data)[1], |bytes| bytes[30] ^= 1);
        });
        let node = Setup::new(&newest).start().await;
        let name = manifests(&used)[1].file_name().unwrap().to_string_lossy().into_owned();
        assert!(node.said().contains(&name), "it says so: {}", node.said());
        assert_eq!(crash::browse(&node, "t", 0).await.len(), 11);
        node.stop().await;
        // A part that is gone is not one that was never there.
        let gone = changed(&used, &format!("gone-{part}"), |data| {
            fs::remove_dir_all(data.join(part)).unwrap();
        });
        refuses(&gone, 1, &[part, "missing"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_that_is_gone_or_cut_short_is_refused() {
    let (_dir, used) = used().await;
    for part in ["meta", "shard-0000"] {
        let segment = |data: &Path| named(&data.join(part).join("log"), "seg-");
        let gone = changed(&used, &format!("gone-{part}"), |data| {
            fs::remove_file(segment(data)).unwrap();
        });
        refuses(&gone, 1, &["seg-", "missing"]).await;
        for len in [0, 1, 4095, 4096, 8192, 1 << 20] {
            let cut = changed(&used, &format!("cut-{len}-{part}"), |data| {
                fs::OpenOptions::new()
                    .write(true)
                    .open(segment(data))
                    .unwrap()
                    .set_len(len)
                    .unwrap();
            });
            refuses(&cut, 1, &["seg-"]).await;
        }
    }
}

/// A store that was killed before its first snapshot has no other evidence of what it
/// holds than its segments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn also_before_the_first_snapshot_a_lost_segment_is_a_loss() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let node = Setup::new(&data).start().await;
    node.client().await.publish("t", "acknowledged").await.unwrap();
    node.kill().await;
    for part in ["meta", "shard-0000"] {
        let segment = |data: &Path| named(&data.join(part).join("log"), "seg-");
        let gone = changed(&data, &format!("gone-{part}"), |data| {
            fs::remove_file(segment(data)).unwrap();
        });
        refuses(&gone, 1, &["seg-"]).await;
        let empty = changed(&data, &format!("empty-{part}"), |data| {
            fs::write(segment(data), b"").unwrap();
        });
        refuses(&empty, 1, &["seg-"]).await;
        let all = changed(&data, &format!("all-{part}"), |data| {
            fs::remove_dir_all(data.join(part)).unwrap();
        });
        refuses(&all, 1, &[part]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_and_settings_that_make_no_sense_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let setup = Setup::new(dir.path());
    let ended = setup.clone().listen(&address).refused().await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.said.contains(&address) && ended.said.contains("--listen"), "{}", ended.said);
    drop(web::connect(taken.local_addr().unwrap()).await);
    for (flag, value) in [
        ("--segment-size", "1MiB"),
        ("--memory", "1MiB"),
        ("--durability", "never"),
        ("--shards", "65"),
        ("--stop-timeout", "soon"),
        ("--max-connections", "many"),
        ("--log", "=,="),
    ] {
        let ended = setup.clone().flag(flag, value).refused().await;
        assert_eq!(ended.code, Some(2), "{flag} {value}: {ended:#?}");
        assert!(ended.said.contains(value), "{flag} {value}: {}", ended.said);
    }
}
