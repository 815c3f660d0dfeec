//! First step: what files there are, and what each says it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Context;
use crate::SegmentNo;
use crate::files::{Access, File, FileError, Files};
use crate::local::error::OpenError;
use crate::local::layout::{
    self, ALIGN_LEAST, BLOCK_BYTES, Geometry, Name, SegmentHeader, SegmentHeaderError,
};
use crate::local::spares;
use crate::local::units::read_segment_header;

/// What the header block of a segment file says, beside the name of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// It is the segment that the name says.
    Valid(SegmentHeader),
    /// It is no segment's: not written yet, torn, or damaged.
    Blank(String),
    /// It is that of an earlier use: a recycled file whose new header is not there.
    Stale(SegmentHeader),
    /// It is another, later segment: files were exchanged.
    Exchanged(SegmentHeader),
    /// It is another store's.
    Foreign(SegmentHeader),
    /// It has a newer layout.
    Newer(u16),
    /// It is the segment that the name says, but the file has another size.
    WrongSize(SegmentHeader),
}

impl Head {
    /// Reads the header block of `file`, which has the name of segment `no`.
    pub(crate) fn read(file: &dyn File, store: u64, no: SegmentNo) -> Result<Head, FileError> {
        let header = match read_segment_header(file)? {
            Ok(header) => header,
            Err(SegmentHeaderError::Version(version)) => return Ok(Head::Newer(version)),
            Err(blank) => return Ok(Head::Blank(blank.to_string())),
        };
        Ok(if header.store != store {
            Head::Foreign(header)
        } else if header.no < no {
            Head::Stale(header)
        } else if header.no > no {
            Head::Exchanged(header)
        } else if file.size()? != header.bytes {
            Head::WrongSize(header)
        } else {
            Head::Valid(header)
        })
    }
}

/// A file with a segment's name.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub no: SegmentNo,
    pub path: PathBuf,
    /// Its header, or why it has none.
    pub head: Result<SegmentHeader, String>,
    pub len: u64,
}

impl Candidate {
    /// Opens the file. It is not kept open: a log can have more segments than a
    /// process may have files.
    pub(crate) fn open(&self, context: &Context) -> Result<Arc<dyn File>, FileError> {
        context.files.open(&self.path, Access::Write)
    }

    /// The places in it; if it does not say, those that new segments have.
    pub(crate) fn geometry(&self, new: Geometry) -> Geometry {
        match &self.head {
            Ok(header) => header.geometry(),
            Err(_) => Geometry { bytes: self.len.max(new.bytes), align: new.align },
        }
    }
}

/// The files of a log directory.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// By number.
    pub segments: Vec<Candidate>,
    pub spares: spares::Found,
    /// Spares of another size than segments have now.
    pub misfits: Vec<PathBuf>,
    /// Above every number in use.
    pub next_segment: u64,
    /// Above every number that a copy of cut bytes has.
    pub next_cut: u64,
}

impl Survey {
    /// Lists the directory and reads the header of every segment file.
    pub(crate) fn take(context: &Context) -> Result<Survey, OpenError> {
        let mut survey = Survey { next_segment: 1, ..Survey::default() };
        for entry in context.files.list(&context.dir)? {
            let Some(name) = Name::parse(&entry.name).filter(|_| !entry.is_dir) else {
                continue;
            };
            match name {
                Name::Segment(no) => {
                    survey.next_segment = survey.next_segment.max(no.0 + 1);
                    let path = context.dir.join(&entry.name);
                    survey.segments.push(candidate(context, no, path, entry.len)?);
                }
                Name::Spare(n) => {
                    survey.spares.next_n = survey.spares.next_n.max(n + 1);
                    match entry.len == context.options.segment_bytes {
                        true => survey.spares.ready.push(n),
                        false => survey.misfits.push(context.dir.join(&entry.name)),
                    }
                }
                Name::Fill(n) => {
                    survey.spares.next_n = survey.spares.next_n.max(n + 1);
                    survey.spares.fills.push(n);
                }
                Name::Cut { n, .. } => survey.next_cut = survey.next_cut.max(n + 1),
            }
        }
        survey.check_needed(context)?;
        Ok(survey)
    }

    /// Makes the files from segment `from` on show what the disk holds. After a
    /// failed sync the system shows content that it could not write, and calls it
    /// written; taken for durable, it would be lost after all at the next power cut.
    /// (Segments before `from` are known to be durable.)
    pub(crate) fn face_the_disk(
        &mut self,
        context: &Context,
        from: usize,
    ) -> Result<(), OpenError> {
        for found in self.segments.iter_mut().skip(from) {
            let file = found.open(context)?;
            // What is only in memory yet, and can be written, is no lie: a process
            // that was killed leaves this.
            file.sync_data()?;
            file.evict();
            *found = candidate(context, found.no, found.path.clone(), found.len)?;
        }
        Ok(())
    }

    /// Every segment that the manifest needs is there.
    fn check_needed(&self, context: &Context) -> Result<(), OpenError> {
        for no in context.options.must_have.iter().flatten() {
            let file = context.dir.join(Name::Segment(*no).to_string());
            let found = self.segments.iter().find(|segment| segment.no == *no);
            let what = match found.map(|found| &found.head) {
                Some(Ok(_)) => continue,
                Some(Err(why)) => format!("is corrupt at byte 0 ({why})"),
                None => "is missing".to_owned(),
            };
            return Err(OpenError::MissingSegment { file, what });
        }
        Ok(())
    }
}

fn candidate(
    context: &Context,
    no: SegmentNo,
    path: PathBuf,
    len: u64,
) -> Result<Candidate, OpenError> {
    let file = context.files.open(&path, Access::Read)?;
    let head = match Head::read(&*file, context.options.store, no)? {
        Head::Valid(header) if header.shard == context.options.shard => Ok(header),
        Head::Valid(header) => {
            let what = format!("of shard {}, not of shard {}", header.shard, context.options.shard);
            return Err(OpenError::Foreign { file: path, what });
        }
        // A torn header can be anything, but the file had its size before its name.
        Head::Blank(_) if len < BLOCK_BYTES as u64 || !len.is_multiple_of(ALIGN_LEAST.into()) => {
            return Err(OpenError::Corrupt {
                file: path,
                offset: len,
                frame: context.options.known_durable.next(),
                what: format!("the file has {len} bytes, which no segment has"),
                evidence: "a segment file is never resized".to_owned(),
            });
        }
        Head::Blank(why) => Err(why),
        // A file is recycled after its segment was released, and that after its
        // frames were durable. Else this is no recycled file but a renamed one.
        Head::Stale(header) if header.first <= context.options.known_durable => {
            Err(format!("it was begun anew after segment {}", header.no.0))
        }
        Head::Stale(header) | Head::Exchanged(header) => {
            return Err(OpenError::Exchanged { file: path, holds: header.no });
        }
        Head::Foreign(header) => {
            let store = context.options.store;
            let what = format!("of store {:016x}, not of store {store:016x}", header.store);
            return Err(OpenError::Foreign { file: path, what });
        }
        Head::Newer(found) => {
            let (found, known) = (u32::from(found), u32::from(layout::VERSION));
            return Err(OpenError::Newer { file: path, offset: 0, found, known });
        }
        Head::WrongSize(header) => {
            return Err(OpenError::Corrupt {
                file: path,
                offset: len,
                frame: header.first,
                what: format!("the file has {len} bytes, its header says {}", header.bytes),
                evidence: "a segment file is never resized".to_owned(),
            });
        }
    };
    Ok(Candidate { no, path, head, len })
}

/// The segment files in a directory, by number; for those who only look.
pub(crate) fn segment_names(
    files: &dyn Files,
    dir: &Path,
) -> Result<Vec<(SegmentNo, PathBuf)>, FileError> {
    let mut found = Vec::new();
    for entry in files.list(dir)? {
        if let Some(Name::Segment(no)) = Name::parse(&entry.name).filter(|_| !entry.is_dir) {
            found.push((no, dir.join(&entry.name)));
        }
    }
    Ok(found)
}
