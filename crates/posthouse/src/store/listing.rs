//! `backup.json`: what a copy of a store consists of.
//!
//! It is the first file of a copy, and says then that the copy is not whole; and the last,
//! with every file's length and checksum. So a copy that was cut short is known for that
//! wherever it is met. A node that takes a backup over as its data directory removes it.

use std::path::Path;

use posthouse_log::files::{Access, Files};
use serde::{Deserialize, Serialize};

use super::{StoreError, read_file, write_file};

/// Its name, in the data directory.
pub const LISTING_FILE: &str = "backup.json";

/// The layout of the file that this build writes.
const FORMAT: u32 = 1;

/// What `backup.json` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listing {
    /// The layout of the file.
    pub format: u32,
    /// Whether everything is there.
    pub complete: bool,
    /// The number of the store, in hexadecimal.
    pub store: String,
    /// When it was begun, Unix milliseconds. Everything that was acknowledged before is in
    /// it.
    pub begun_at_ms: u64,
    /// The release that made it.
    pub made_by: String,
    /// Places that did not hold when it was made: they are damaged in the store, too.
    #[serde(default)]
    pub findings: u64,
    /// Every file but this one.
    #[serde(default)]
    pub files: Vec<ListedFile>,
}

/// A file of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedFile {
    /// Its path from the directory of the copy, with `/`.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// CRC-32C of all of it, 8 hexadecimal digits.
    pub crc32c: String,
}

impl Listing {
    /// Of a copy that has just been begun.
    pub fn begin(store: u64, now_ms: u64) -> Listing {
        Listing {
            format: FORMAT,
            store: format!("{store:016x}"),
            begun_at_ms: now_ms,
            made_by: env!("CARGO_PKG_VERSION").into(),
            ..Listing::default()
        }
    }

    /// Reads it from `dir`. `None` if `dir` is no copy.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it cannot be read, [`StoreError::Newer`] if a newer
    /// release wrote it.
    pub fn read(files: &dyn Files, dir: &Path) -> Result<Option<Listing>, StoreError> {
        let file = dir.join(LISTING_FILE);
        let bytes = match read_file(files, &file) {
            Err(error) if error.is_missing() => return Ok(None),
            read => read?,
        };
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let damaged = |error| StoreError::damaged(&file, error);
        let format: Format = serde_json::from_slice(&bytes).map_err(damaged)?;
        if format.format > FORMAT {
            return Err(StoreError::Newer { path: file.clone(), found: format.format });
        }
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    /// Writes it to `dir`, durably.
    ///
    /// # Errors
    /// What the system refused.
    pub fn write(&self, files: &dyn Files, dir: &Path) -> Result<(), StoreError> {
        let mut json = serde_json::to_vec_pretty(self).expect("it has nothing that JSON has not");
        json.push(b'\n');
        write_file(files, dir, LISTING_FILE, &json)
    }

    /// Checks that every file is there, with its length.
    ///
    /// # Errors
    /// [`StoreError::Unfinished`] if the copy was cut short, [`StoreError::Damaged`] for a
    /// file that is missing or has another length.
    pub fn check(&self, files: &dyn Files, dir: &Path) -> Result<(), StoreError> {
        if !self.complete {
            return Err(StoreError::Unfinished { dir: dir.to_owned() });
        }
        for listed in &self.files {
            let path = dir.join(&listed.path);
            let what = match files.open(&path, Access::Read) {
                Err(error) if error.is_missing() => {
                    format!("it is missing, and {LISTING_FILE} has it")
                }
                opened => match opened?.size()? {
                    bytes if bytes == listed.bytes => continue,
                    bytes => {
                        let listed = listed.bytes;
                        format!("it has {bytes} bytes, and {LISTING_FILE} says {listed}")
                    }
                },
            };
            return Err(StoreError::damaged(&path, what));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthouse_log::files::sim::SimFiles;

    #[test]
    fn a_copy_is_unfinished_until_its_list_says_otherwise_and_then_every_file_counts() {
        let disk = SimFiles::new(1);
        let dir = Path::new("/copy");
        disk.create_dir(dir).unwrap();
        assert_eq!(Listing::read(&disk, dir).unwrap(), None);
        let mut listing = Listing::begin(7, 1_900_000_000_000);
        listing.write(&disk, dir).unwrap();
        let read = Listing::read(&disk, dir).unwrap().unwrap();
        assert_eq!(read, listing);
        assert!(matches!(read.check(&disk, dir), Err(StoreError::Unfinished { .. })));
        listing.complete = true;
        let path = "shard-0000/log/seg".to_owned();
        listing.files.push(ListedFile { path, bytes: 3, crc32c: "00000000".into() });
        let error = listing.check(&disk, dir).unwrap_err().to_string();
        assert!(error.contains("/copy/shard-0000/log/seg is damaged: it is missing"), "{error}");
        disk.create_dir(&dir.join("shard-0000")).unwrap();
        disk.create_dir(&dir.join("shard-0000/log")).unwrap();
        let file = disk.create(&dir.join("shard-0000/log/seg")).unwrap();
        file.write_all_at(b"ab", 0).unwrap();
        let error = listing.check(&disk, dir).unwrap_err().to_string();
        assert!(error.contains("it has 2 bytes, and backup.json says 3"), "{error}");
        file.write_all_at(b"c", 2).unwrap();
        listing.check(&disk, dir).unwrap();
    }
}
