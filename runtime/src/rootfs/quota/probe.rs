//! Whether project quotas hold: by a real try, because neither mount options nor what the kernel
//! says of its limits tell whether writing over one fails.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use caps::{CapSet, Capability};
use rustix::fs::{CWD, fstatfs};
use rustix::io::Errno;

use super::project::Quotas;
use super::remove::{open_dir, remove_container};
use super::{Cap, claim_dir};
use crate::{Error, ErrorKind, Result};

const EXT4: i64 = 0xEF53;
const XFS: i64 = 0x5846_5342;
/// Of the tried project.
const CAP: Cap = Cap { bytes: 64 << 10, inodes: 8 };
const ADVICE: &str = "mount an XFS or ext4 filesystem with the option prjquota there (ext4 needs \
    `tune2fs -O project,quota` before), or use `--writable loop`";

/// Whether the filesystem of `dir` has project quotas switched on; changes nothing.
///
/// # Errors
/// Why not.
pub(super) fn look(dir: &Path) -> Result<()> {
    let fd = open_dir(CWD, dir.as_os_str())
        .map_err(|e| Error::host(format!("cannot open {}", dir.display()), e))?;
    let kind = fstatfs(&fd).map_err(|e| Error::host(format!("cannot statfs {}", dir.display()), e))?.f_type;
    let name = match kind as i64 {
        EXT4 => "ext4",
        XFS => "XFS",
        _ => return Err(refuse("only ext4 and XFS have project quotas".to_owned())),
    };
    match Quotas::of(fd.as_fd()) {
        Ok(_) => Ok(()),
        Err(e) => match e.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::SRCH | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                Err(refuse(format!("{name} without project quotas")))
            }
            _ => Err(refuse(format!("{name} does not tell of project quotas")).because(e)),
        },
    }
}

/// Tries project quotas in `dir`, in a directory that is removed again.
///
/// # Errors
/// Why they do not hold.
pub(crate) fn probe(dir: &Path) -> Result<()> {
    look(dir)?;
    let name = format!(".skiff-quota-{}", std::process::id());
    let tried = claim_dir(&dir.join(&name), "root", CAP).and_then(|dir| exceed(&dir));
    let removed = open_dir(CWD, dir.as_os_str()).and_then(|dir| remove_container(dir.as_fd(), name.as_ref()));
    tried?;
    removed.map_err(|e| Error::host(format!("cannot remove {name} in {}", dir.display()), e))
}

fn refuse(why: String) -> Error {
    Error::new(ErrorKind::Host, why).advise(ADVICE)
}

/// Writes over both limits, as a container would: in a thread without the capability that ext4
/// lets over every limit.
fn exceed(dir: &Path) -> Result<()> {
    let held = std::thread::scope(|scope| {
        let tried = scope.spawn(|| -> io::Result<[bool; 2]> {
            caps::drop(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE).map_err(io::Error::other)?;
            Ok([is_stopped(exceed_bytes(dir))?, is_stopped(exceed_inodes(dir))?])
        });
        tried.join().unwrap_or_else(|_| Err(io::Error::other("the try panicked")))
    });
    match held {
        Ok([true, true]) => Ok(()),
        Ok(_) => Err(refuse("project quotas are counted, but not enforced".to_owned())),
        Err(e) => Err(refuse("project quotas could not be tried".to_owned()).because(e)),
    }
}

fn exceed_bytes(dir: &Path) -> io::Result<()> {
    let mut file = File::create(dir.join("bytes"))?;
    for _ in 0..=CAP.bytes / 4096 {
        file.write_all(&[1; 4096])?;
    }
    Ok(())
}

fn exceed_inodes(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("bytes"), "")?;
    (0..=CAP.inodes).try_for_each(|number| File::create(dir.join(number.to_string())).map(drop))
}

/// Whether a limit was met, and no other error.
fn is_stopped(tried: io::Result<()>) -> io::Result<bool> {
    match tried {
        Ok(()) => Ok(false),
        Err(e) => match e.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::DQUOT | Errno::NOSPC) => Ok(true),
            _ => Err(e),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filesystem_without_quotas_is_told_and_left_as_it_is() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("tempdir");
        let error = probe(dir.path()).expect_err("a tmpfs");
        assert!(error.to_string().contains("only ext4 and XFS"), "{error}");
        assert!(error.advice().is_some_and(|a| a.contains("prjquota")));
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 0);
    }
}
