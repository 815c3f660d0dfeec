use super::*;

fn path(name: &str) -> PathBuf {
    Path::new("/d").join(name)
}

fn disk(seed: u64) -> SimFiles {
    let disk = SimFiles::new(seed);
    disk.create_dir(Path::new("/d")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk
}

fn durable(disk: &SimFiles, name: &str, content: &[u8]) -> Arc<dyn File> {
    let file = disk.create(&path(name)).unwrap();
    file.write_all_at(content, 0).unwrap();
    file.sync_all().unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    file
}

#[test]
fn what_is_synced_survives_and_what_is_not_comes_back_torn_by_sectors() {
    let (mut old, mut new, mut mixed) = (0, 0, 0);
    for seed in 0..200 {
        let disk = disk(seed);
        let file = durable(&disk, "a", &[1; 2048]);
        file.write_all_at(&[2; 2048], 0).unwrap();
        let disk = disk.crash();
        let content = disk.content(&path("a"));
        assert_eq!(content.len(), 2048);
        let sectors: Vec<u8> = content.chunks(512).map(|s| s[0]).collect();
        assert!(content.chunks(512).all(|s| s.iter().all(|b| *b == s[0])), "half a sector");
        match sectors.iter().filter(|s| **s == 2).count() {
            0 => old += 1,
            4 => new += 1,
            _ => mixed += 1,
        }
    }
    assert!(old > 20 && new > 20 && mixed > 20, "{old} {new} {mixed}");
}

#[test]
fn a_name_is_certain_only_after_its_directory_was_synced() {
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..100 {
        let disk = disk(seed);
        durable(&disk, "old", b"x");
        disk.rename(&path("old"), &path("new")).unwrap();
        let disk = disk.crash();
        match (disk.open(&path("old"), Access::Read), disk.open(&path("new"), Access::Read)) {
            (Ok(_), Err(_)) => lost += 1,
            (Err(_), Ok(_)) => kept += 1,
            other => panic!("seed {seed}: a rename is atomic: {other:?}"),
        }
    }
    assert!(kept > 10 && lost > 10, "{kept} {lost}");
    let disk = disk(1);
    durable(&disk, "old", b"x");
    disk.rename(&path("old"), &path("new")).unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    assert_eq!(disk.crash().content(&path("new")), b"x");
}

#[test]
fn after_a_failed_sync_the_cache_lies_and_the_next_sync_says_nothing() {
    let mut lied = 0;
    for seed in 0..20 {
        let disk = disk(seed);
        let file = durable(&disk, "a", &[1; 512]);
        file.write_all_at(&[2; 512], 0).unwrap();
        disk.fail(Fault::next(Op::Sync));
        assert!(file.sync_data().is_err());
        file.sync_data().unwrap();
        assert_eq!(disk.content(&path("a")), [2; 512], "the cache shows what was written");
        file.evict();
        let evicted = disk.content(&path("a"));
        assert_eq!(disk.crash().content(&path("a")), evicted, "evicted shows the disk");
        lied += u32::from(evicted == [1; 512]);
    }
    assert!(lied > 3, "{lied}");
}

#[test]
fn a_full_disk_takes_no_new_blocks_and_any_overwrite() {
    let disk = disk(1);
    let file = durable(&disk, "a", &[1; 8192]);
    disk.set_room(12_288);
    assert_eq!(disk.space(Path::new("/d")).unwrap().available, 4096);
    file.write_all_at(&[2; 8192], 0).unwrap();
    let full = file.write_all_at(&[3; 8192], 8192).unwrap_err();
    assert!(full.is_full(), "{full}");
    assert_eq!(full.offset, Some(12_288), "what fitted was written");
    let other = disk.create(&path("b")).unwrap();
    assert!(other.allocate(4096).unwrap_err().is_full());
    disk.unlink(&path("a")).unwrap();
    other.allocate(4096).unwrap();
}

#[test]
fn the_power_fails_at_the_call_it_was_told_to_and_old_handles_stay_dead() {
    let disk = disk(3);
    let file = durable(&disk, "a", b"x");
    disk.cut_power_after(2);
    file.write_all_at(b"y", 0).unwrap();
    assert!(file.sync_data().is_err());
    assert!(file.read_exact_at(&mut [0], 0).is_err());
    assert!(disk.is_off());
    let next = disk.crash();
    assert!(file.read_exact_at(&mut [0], 0).is_err());
    assert!(disk.list(Path::new("/d")).is_err());
    assert_eq!(next.list(Path::new("/d")).unwrap().len(), 1);
}

#[test]
fn short_reads_and_writes_are_completed() {
    let disk = disk(4);
    disk.short_io(true);
    let data: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
    let file = disk.create(&path("a")).unwrap();
    let mut pieces: Vec<IoSlice<'_>> = data.chunks(777).map(IoSlice::new).collect();
    file.write_all_vectored_at(&mut pieces, 0).unwrap();
    let mut back = vec![0; data.len()];
    file.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(back, data);
}

#[test]
fn the_same_seed_ends_the_same() {
    let run = || {
        let disk = disk(99);
        let file = durable(&disk, "a", &[1; 4096]);
        file.write_all_at(&[2; 4096], 0).unwrap();
        disk.create(&path("b")).unwrap();
        let disk = disk.crash();
        (disk.content(&path("a")), disk.list(Path::new("/d")).unwrap())
    };
    assert_eq!(run(), run());
}
