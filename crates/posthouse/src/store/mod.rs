//! The data directory: what is where, and what it takes to open it.
//!
//! ```text
//! store.json                 what store this is, for humans and for us
//! secret                     32 random bytes; ids and receipts are proved with them. Then a
//!                            checksum over store.json and them
//! meta/   shard-0000/ ...    one directory per log
//!   log/                     segments: see posthouse_log::local
//!   chunks/                  c-<epoch>-<number>: see posthouse_core::chunk
//!   manifest-<generation>    the newest two snapshots: see manifest
//! backup.json                of a backup: what it consists of: see listing
//! ```

pub mod cache;
pub mod chunks;
pub mod clean;
pub mod copy;
pub mod dump;
pub mod listing;
pub mod look;
pub mod manifest;
pub mod open;
pub mod repair;
pub mod snapshot;
pub mod stats;
pub mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use posthouse_core::ident::Secret;
use posthouse_frame::crc32c;
use posthouse_log::files::{Access, DirLock, FileError, Files};
use posthouse_log::local::OpenError;
use serde::{Deserialize, Serialize};

use self::listing::{LISTING_FILE, Listing};

/// The layout of the directory that this build writes.
pub const FORMAT: u32 = 1;

/// The number that stands for the catalog where logs name their shard.
pub const META_SHARD: u16 = u16::MAX;

const STORE_FILE: &str = "store.json";
const SECRET_FILE: &str = "secret";

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else uses it.
    #[error(
        "the data directory {} is in use by another process; stop that one, or take another \
         directory with --data", dir.display()
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// There is something in it, and it is not a store.
    #[error(
        "{} has files in it, but no {STORE_FILE}: it is not a data directory of Posthouse; take \
         an empty one with --data", dir.display()
    )]
    NotAStore {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no store to look at.
    #[error(
        "{} is no data directory of Posthouse: it has no {STORE_FILE}; say where the data is with \
         --data", dir.display()
    )]
    NoStore {
        /// The directory.
        dir: PathBuf,
    },
    /// A newer release wrote it.
    #[error(
        "{} has format {found}; this release reads up to {FORMAT}: use the newer release that \
         wrote it", path.display()
    )]
    Newer {
        /// The directory, or the file in it.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A copy of a store that is not whole.
    #[error(
        "{} is a copy of a data directory that was cut short: it is not whole, and what it was \
         made from is as it was. Remove it, and make another", dir.display()
    )]
    Unfinished {
        /// The directory.
        dir: PathBuf,
    },
    /// There is something where a copy shall be.
    #[error("{} is not empty: a copy needs a directory that is, or that is not there", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// A copy does not fit.
    #[error(
        "the copy takes {needed} bytes, and the disk of {} has {room} free: take another disk, or \
         make room", dir.display()
    )]
    NoRoom {
        /// The directory.
        dir: PathBuf,
        /// Bytes that are free.
        room: u64,
        /// Bytes that are needed.
        needed: u64,
    },
    /// A copy was ended before it was whole.
    #[error("the copy was ended: {why}")]
    Ended {
        /// Why.
        why: &'static str,
    },
    /// A file does not hold what it should.
    #[error(
        "{} is damaged: {what}. `posthouse data verify` shows all damage, `posthouse data repair` \
         what can be done about it; a backup, or the file as it was, brings it back",
        file.display()
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What does not hold.
        what: String,
    },
    /// The system refused something.
    #[error(transparent)]
    File(#[from] FileError),
    /// A log does not open.
    #[error("{}", log_error(.0))]
    Log(#[from] OpenError),
    /// A log does not read.
    #[error(transparent)]
    Read(#[from] posthouse_log::ReadError),
}

/// Why a log does not open, and where the way out is if it is damaged.
fn log_error(error: &OpenError) -> String {
    let hint = match error {
        OpenError::Corrupt { .. }
        | OpenError::Missing { .. }
        | OpenError::MissingSegment { .. } => {
            "; `posthouse data repair` says what can be done without, and what that loses"
        }
        _ => "",
    };
    format!("{error}{hint}")
}

impl StoreError {
    /// Damage in `file`.
    pub fn damaged(file: &Path, what: impl ToString) -> StoreError {
        StoreError::Damaged { file: file.to_owned(), what: what.to_string() }
    }
}

/// What `store.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreInfo {
    /// The layout of the directory.
    pub format: u32,
    /// The random number that names the store, in hexadecimal.
    pub store: String,
    /// How many shards of messages there are. New partitions are spread over them.
    pub shards: u16,
    /// When it was made, Unix milliseconds.
    pub created_at_ms: u64,
    /// The release that made it.
    pub created_by: String,
}

impl StoreInfo {
    /// The number that names the store.
    pub fn number(&self) -> Option<u64> {
        u64::from_str_radix(&self.store, 16).ok()
    }
}

/// A data directory that is ours alone.
#[derive(Debug)]
pub struct Store {
    /// The disk.
    pub files: Arc<dyn Files>,
    /// Where it is.
    pub dir: PathBuf,
    /// What it says of itself.
    pub info: StoreInfo,
    /// The number that names it.
    pub number: u64,
    /// What ids are proved with.
    pub secret: Secret,
    /// Whether it is a backup that nobody has taken over yet.
    is_backup: bool,
    _lock: Box<dyn DirLock>,
}

/// What a new store gets.
#[derive(Clone, Copy, Debug)]
pub struct NewStore {
    /// How many shards.
    pub shards: u16,
    /// The random number that names it.
    pub number: u64,
    /// Its secret.
    pub secret: [u8; 32],
    /// Now, Unix milliseconds.
    pub now_ms: u64,
}

impl Store {
    /// Opens a data directory, and makes it first if there is nothing.
    ///
    /// # Errors
    /// See [`StoreError`]. A directory that cannot be used is left as it is.
    pub fn open(
        files: Arc<dyn Files>,
        dir: &Path,
        new: impl FnOnce() -> NewStore,
    ) -> Result<Store, StoreError> {
        let is_new = files.list(dir).is_err_and(|error| error.is_missing());
        files.create_dir(dir)?;
        if is_new && let Some(parent) = dir.parent() {
            // Else a power cut could take the directory with all that is in it.
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            files.sync_dir(parent)?;
        }
        let lock = files.lock(dir).map_err(|error| match error.is_locked() {
            true => StoreError::Locked { dir: dir.to_owned() },
            false => error.into(),
        })?;
        let listing = Listing::read(&*files, dir)?;
        if let Some(listing) = &listing {
            listing.check(&*files, dir)?;
        }
        let entries = files.list(dir)?;
        if !entries.iter().any(|entry| entry.name == STORE_FILE) {
            // A store that was being made when the power failed has no store.json yet:
            // it is written last.
            let foreign = entries.iter().any(|entry| !is_ours(&entry.name));
            if foreign {
                return Err(StoreError::NotAStore { dir: dir.to_owned() });
            }
            create(&*files, dir, &new())?;
        }
        let info = read_info(&*files, dir)?;
        let file = dir.join(STORE_FILE);
        let number = info
            .number()
            .ok_or_else(|| StoreError::damaged(&file, "its store is no hexadecimal number"))?;
        let secret = read_secret(&*files, dir)?;
        let (dir, is_backup) = (dir.to_owned(), listing.is_some());
        Ok(Store { files, dir, info, number, secret, is_backup, _lock: lock })
    }

    /// Takes the store over: from now on its files change. A backup is none any more.
    ///
    /// # Errors
    /// What the system refused.
    pub fn take_over(&mut self) -> Result<(), StoreError> {
        if std::mem::take(&mut self.is_backup) {
            self.files.unlink(&self.dir.join(LISTING_FILE))?;
            self.files.sync_dir(&self.dir)?;
        }
        Ok(())
    }

    /// The directory of the catalog's log.
    pub fn meta_dir(&self) -> PathBuf {
        self.dir.join("meta")
    }

    /// The directory of a shard.
    pub fn shard_dir(&self, shard: u16) -> PathBuf {
        shard_dir(&self.dir, shard)
    }
}

/// The directory of a shard in the data directory `dir`.
pub fn shard_dir(dir: &Path, shard: u16) -> PathBuf {
    dir.join(format!("shard-{shard:04}"))
}

fn is_ours(name: &str) -> bool {
    name == SECRET_FILE || name.ends_with(".tmp") || name == "lost+found" || name.ends_with("lock")
}

fn create(files: &dyn Files, dir: &Path, new: &NewStore) -> Result<(), StoreError> {
    let info = StoreInfo {
        format: FORMAT,
        store: format!("{:016x}", new.number),
        shards: new.shards,
        created_at_ms: new.now_ms,
        created_by: env!("CARGO_PKG_VERSION").into(),
    };
    let mut json = serde_json::to_vec_pretty(&info).expect("it has nothing that JSON has not");
    json.push(b'\n');
    let mut secret = new.secret.to_vec();
    secret.extend_from_slice(&check(&json, &new.secret).to_le_bytes());
    write_file(files, dir, SECRET_FILE, &secret)?;
    write_file(files, dir, STORE_FILE, &json)
}

/// One checksum for both files: CRC-32C over `store.json` and the secret.
fn check(json: &[u8], secret: &[u8]) -> u32 {
    crc32c(&[json, secret].concat())
}

/// What `store.json` in `dir` says.
///
/// # Errors
/// See [`StoreError`].
pub fn read_info(files: &dyn Files, dir: &Path) -> Result<StoreInfo, StoreError> {
    let file = dir.join(STORE_FILE);
    let bytes = read_file(files, &file)?;
    // A newer format may have fields that we do not know: the number comes first.
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let format: Format =
        serde_json::from_slice(&bytes).map_err(|e| StoreError::damaged(&file, e))?;
    if format.format > FORMAT {
        return Err(StoreError::Newer { path: file, found: format.format });
    }
    serde_json::from_slice(&bytes).map_err(|e| StoreError::damaged(&file, e))
}

/// The secret of the store in `dir`.
///
/// # Errors
/// See [`StoreError`]; among others if it or `store.json` is not as it was written.
pub fn read_secret(files: &dyn Files, dir: &Path) -> Result<Secret, StoreError> {
    let file = dir.join(SECRET_FILE);
    let bytes = read_file(files, &file)?;
    let bytes: [u8; 36] = bytes
        .try_into()
        .map_err(|b: Vec<u8>| StoreError::damaged(&file, format!("{} bytes, not 36", b.len())))?;
    let [secret @ .., a, b, c, d] = bytes;
    let json = read_file(files, &dir.join(STORE_FILE))?;
    if check(&json, &secret) != u32::from_le_bytes([a, b, c, d]) {
        let what = format!("its checksum at byte 32, over {STORE_FILE} and it, does not hold");
        return Err(StoreError::damaged(&file, what));
    }
    Ok(Secret::new(secret))
}

/// All bytes of a file.
///
/// # Errors
/// What the system refused.
pub fn read_file(files: &dyn Files, path: &Path) -> Result<Vec<u8>, FileError> {
    let file = files.open(path, Access::Read)?;
    let mut bytes = vec![0; file.size()? as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Writes a file so that after a power cut it is there whole, or as it was before.
///
/// # Errors
/// What the system refused.
pub fn write_file(
    files: &dyn Files,
    dir: &Path,
    name: &str,
    bytes: &[u8],
) -> Result<(), StoreError> {
    let temporary = dir.join(format!("{name}.tmp"));
    match files.unlink(&temporary) {
        Err(error) if !error.is_missing() => return Err(error.into()),
        _ => {}
    }
    let file = files.create(&temporary)?;
    file.write_all_at(bytes, 0)?;
    if !posthouse_frame::planted("manifest-unsynced") {
        file.sync_all()?;
    }
    files.rename(&temporary, &dir.join(name))?;
    if !posthouse_frame::planted("manifest-name-unsynced") {
        files.sync_dir(dir)?;
    }
    Ok(())
}
