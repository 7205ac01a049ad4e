//! Finding the program `skiff-keeper` and executing it.

use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};

use crate::{Error, ErrorKind, Result, breakpoint};

const BINARY: &str = "skiff-keeper";
/// Attempts at sealing the keeper's copy after the first, and the wait before each.
const SEAL_TRIES: u32 = 20;
const SEAL_WAIT: Duration = Duration::from_millis(5);

/// The given binary, or the one beside this program, or the one in `PATH`.
pub(crate) fn find(given: Option<&Path>) -> Result<PathBuf> {
    let missing = |text: String| {
        Error::new(ErrorKind::KeeperNotFound, text)
            .advise("install skiff-keeper beside skiff, or tell where it is with --keeper or SKIFF_KEEPER")
    };
    let exe = std::env::current_exe().ok();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = candidate(given, exe.as_deref().and_then(Path::parent), std::env::split_paths(&path));
    match found {
        Some(path) if path.is_file() => Ok(path),
        Some(path) => Err(missing(format!("there is no keeper at {}", path.display()))),
        None => Err(missing(format!("{BINARY} is neither beside this program nor in PATH"))),
    }
}

/// Where the keeper is looked for: the given place, whatever is there; else the directory of the
/// running program, then the directories of programs.
pub(crate) fn candidate(
    given: Option<&Path>,
    exe_dir: Option<&Path>,
    dirs: impl Iterator<Item = PathBuf>,
) -> Option<PathBuf> {
    if let Some(given) = given {
        return Some(given.to_owned());
    }
    let all = exe_dir.map(Path::to_owned).into_iter().chain(dirs);
    all.map(|dir| dir.join(BINARY)).find(|path| path.is_file())
}

/// Executes a sealed copy of the binary, so that no container can ever write to the file on disk
/// through `/proc/PID/exe` (CVE-2019-5736).
pub(crate) fn execute(path: &Path, arguments: &[&str], socket: OwnedFd) -> Result<Child> {
    let failed = |what: &str, e: io::Error| {
        Error::new(ErrorKind::KeeperNotFound, format!("cannot {what} {}", path.display()))
            .because(e)
            .advise("check the file and its permissions, or give another with --keeper")
    };
    let copy = sealed_copy(path).map_err(|e| failed("read", e))?;
    use std::os::fd::AsRawFd;
    Command::new(format!("/proc/self/fd/{}", copy.as_raw_fd()))
        .arg0(BINARY)
        .args(arguments)
        .env_clear()
        .envs(breakpoint::environment())
        .current_dir("/")
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|e| failed("execute", e))
}

fn sealed_copy(path: &Path) -> io::Result<File> {
    let mut from = File::open(path)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Hosts with vm.memfd_noexec=1 execute only what asks for it; kernels before 6.3 know no such flag.
    let created = match rustix::fs::memfd_create(BINARY, flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(BINARY, flags),
        other => other,
    };
    let mut copy = File::from(created?);
    io::copy(&mut from, &mut copy)?;
    copy.rewind()?;
    seal(&copy)?;
    Ok(copy)
}

/// Takes away everybody's right to write. A busy host's kernel was once seen to refuse that (EBUSY),
/// although nobody else has the file; why is not known, so it is asked again for a moment.
fn seal(copy: &File) -> io::Result<()> {
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    let mut tries = 0;
    loop {
        match rustix::fs::fcntl_add_seals(copy, seals) {
            Err(rustix::io::Errno::BUSY) if tries < SEAL_TRIES => {
                tries += 1;
                std::thread::sleep(SEAL_WAIT);
            }
            other => return Ok(other?),
        }
    }
}
