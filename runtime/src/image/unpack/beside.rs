//! Filling small files on a thread beside the one that makes them.
//!
//! A file gets its name, in the archive's order, from the thread that reads the archive; its bytes,
//! its time and its `close` come from the other. So nothing here depends on names: a file that is
//! linked, replaced or removed meanwhile is the same file. It pays for layers of many small files,
//! where the calls of the kernel cost more than the bytes.

use std::fs::File;
use std::io::{Read, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::fs::Timespec;

use super::{broken, meta, path};
use crate::{Error, ErrorKind, Result};

/// The most bytes of a file that is filled here; larger ones go through the kernel faster than
/// through another thread.
pub(super) const MAX_BYTES: u64 = 16 << 10;
/// Files under way, and so the memory taken: 256 KiB.
const BUFFERS: usize = 16;

/// A file that is complete but for its bytes and its time.
struct Job {
    file: File,
    bytes: Vec<u8>,
    mtime: Timespec,
    path: PathBuf,
}

/// Where files are handed over.
pub(super) struct Filler {
    jobs: SyncSender<Job>,
    free: Receiver<Vec<u8>>,
}

/// Does `work` with a thread beside it that fills files, and waits until all of them are filled.
///
/// # Errors
/// What failed beside, which came first; else what `work` returned.
pub(super) fn with<T>(work: impl FnOnce(Filler) -> Result<T>) -> Result<T> {
    let (jobs, todo) = sync_channel(BUFFERS);
    let (used, free) = sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        // There is room for all of them, and the other end is here.
        let _ = used.send(Vec::new());
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("skiff-files".into())
            .spawn_scoped(scope, move || fill_all(&todo, &used))
            .map_err(|e| Error::host("start a thread that fills the files of a layer", e))?;
        // Its end of the channel goes with it.
        let done = work(Filler { jobs, free });
        let panicked = |_| Error::new(ErrorKind::Internal, "filling the files of a layer panicked");
        thread.join().map_err(panicked)?.and(done)
    })
}

impl Filler {
    /// Hands over a new file whose next `size` bytes (at most [`MAX_BYTES`]) are those of `data`.
    ///
    /// # Errors
    /// What reading `data` returned, which may end early; `Internal` if a file failed before, of
    /// which [`with`] tells.
    pub(super) fn fill(
        &self,
        file: File,
        size: u64,
        mtime: Timespec,
        path: &Path,
        data: impl Read,
    ) -> Result<()> {
        let gone = || Error::new(ErrorKind::Internal, "the thread that fills files ended");
        let mut bytes = self.free.recv().map_err(|_| gone())?;
        bytes.clear();
        bytes.reserve_exact(size as usize);
        let read = data.take(size).read_to_end(&mut bytes).map_err(|e| broken(e, "archive in a layer"))?;
        if (read as u64) < size {
            return Err(broken(std::io::ErrorKind::UnexpectedEof.into(), "archive in a layer"));
        }
        self.jobs.send(Job { file, bytes, mtime, path: path.to_owned() }).map_err(|_| gone())
    }
}

fn fill_all(todo: &Receiver<Job>, used: &SyncSender<Vec<u8>>) -> Result<()> {
    for mut job in todo {
        fill(&mut job)?;
        // The other side may have ended.
        let _ = used.try_send(job.bytes);
    }
    Ok(())
}

fn fill(job: &mut Job) -> Result<()> {
    let failed = |call: &str, error| {
        let path = path::show(job.path.as_os_str().as_bytes());
        Error::host(format!("{call} {path} while unpacking a layer"), error)
    };
    job.file.write_all(&job.bytes).map_err(|e| failed("write", e))?;
    rustix::fs::futimens(&job.file, &meta::times(job.mtime)).map_err(|e| failed("set the times of", e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Timespec = Timespec { tv_sec: 1_700_000_000, tv_nsec: 5 };

    #[test]
    fn files_get_their_bytes_and_time_under_whatever_name() {
        let dir = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| dir.path().join(name);
        with(|files| {
            for n in 0..100_u8 {
                let path = at(&n.to_string());
                let file = File::create(&path).expect("created");
                std::fs::hard_link(&path, at(&format!("link-{n}"))).expect("linked");
                std::fs::remove_file(&path).expect("removed");
                files.fill(file, u64::from(n), TIME, &path, [n; 200].as_slice())?;
            }
            Ok(())
        })
        .expect("filled");
        for n in 0..100_u8 {
            let path = at(&format!("link-{n}"));
            assert_eq!(std::fs::read(&path).expect("read"), vec![n; usize::from(n)]);
            let stat = rustix::fs::stat(&path).expect("stat");
            assert_eq!((stat.st_mtime, stat.st_mtime_nsec), (TIME.tv_sec, 5));
        }
    }

    #[test]
    fn the_first_file_that_cannot_be_written_is_named_and_ends_the_work() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("file");
        std::fs::write(&path, "").expect("written");
        let mut handed = 0;
        let error = with(|files| {
            for n in 0..1000 {
                let file = if n == 7 { File::open(&path) } else { File::create(dir.path().join("other")) };
                let name = format!("file-{n}");
                files.fill(file.expect("opened"), 1, TIME, Path::new(&name), [1].as_slice())?;
                handed = n;
            }
            Ok(())
        })
        .expect_err("a file that is open for reading only");
        assert!(error.to_string().contains("write \"file-7\" while"), "{error}");
        assert!(handed < 7 + 2 * BUFFERS, "went on to {handed}");
    }

    #[test]
    fn an_archive_that_ends_in_a_file_is_broken() {
        let file = tempfile::tempfile().expect("file");
        let error = with(|files| files.fill(file, 9, TIME, Path::new("f"), [1; 8].as_slice()));
        assert_eq!(error.expect_err("short").kind(), ErrorKind::CorruptImage);
    }
}
