//! The credentials file.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::SystemTime;

use super::document::{self, MAX_BYTES};
use super::{Lease, invalid};
use crate::Result;

/// Reads the file; others than its owner and group must not be able to.
pub(super) fn from_file(path: &Path, now: SystemTime) -> Result<Lease> {
    document::parse(&read_private(path)?, &format!("the credentials file {}", path.display()), now)
}

/// Reads a file of secrets, of at most 64 KiB, that others than its owner and group cannot read.
///
/// # Errors
/// `InvalidCredentials`, which shows nothing of the file.
pub fn read_private(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    let unreadable =
        |e: std::io::Error| invalid(format!("the credentials file {shown} cannot be read")).because(e);
    let file = open_regular(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode();
    if mode & 0o007 != 0 {
        return Err(invalid(format!(
            "the credentials file {shown} is open to every user (mode {:04o})",
            mode & 0o7777
        ))
        .advise(format!("run: chmod 600 {shown}")));
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut text).map_err(unreadable)?;
    if text.len() > MAX_BYTES {
        return Err(invalid(format!("the credentials file {shown} has more than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

/// Opens a regular file; a FIFO neither blocks nor passes.
pub(super) fn open_regular(path: &Path) -> std::io::Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = File::from(open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::Error::other("not a regular file")) }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::UNIX_EPOCH;

    use super::*;

    pub(in crate::image::credentials) fn written(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), text).expect("write");
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("chmod");
        file
    }

    #[test]
    fn open_files_and_special_files_are_refused() {
        let file = written(r#"{"username":"u","password":"p"}"#, 0o604);
        let error = from_file(file.path(), UNIX_EPOCH).expect_err("open to all");
        assert!(error.to_string().contains("0604"), "{error}");
        assert!(error.advice().is_some_and(|a| a.starts_with("run: chmod 600")));
        let missing = from_file(Path::new("/nonexistent/x"), UNIX_EPOCH).expect_err("missing");
        assert!(missing.to_string().contains("/nonexistent/x"));
        from_file(Path::new("/dev/zero"), UNIX_EPOCH).expect_err("a device");
        let big = written(&" ".repeat(70_000), 0o600);
        assert!(from_file(big.path(), UNIX_EPOCH).expect_err("big").to_string().contains("65536"));
    }
}
