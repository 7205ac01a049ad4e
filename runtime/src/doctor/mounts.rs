//! The mount table, as far as the checks need it.

use std::io;
use std::path::{Path, PathBuf};

use super::host::Host;

/// One mount of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) point: PathBuf,
    pub(super) fs_type: String,
    /// Options of the mount and of its filesystem, joined by commas.
    pub(super) options: String,
}

impl Mount {
    /// Whether an option is among its options.
    pub(super) fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|has| has == option)
    }
}

/// All mounts that this process sees.
///
/// # Errors
/// As reading `/proc/self/mountinfo`.
pub(super) fn read(host: &Host) -> io::Result<Vec<Mount>> {
    Ok(host.read("/proc/self/mountinfo")?.lines().filter_map(parse).collect())
}

/// The mount on which `path` is: of those whose point is an ancestor the longest, and of several
/// on one point the last, which covers the others.
pub(super) fn holding<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts.iter().filter(|m| path.starts_with(&m.point)).max_by_key(|m| m.point.components().count())
}

fn parse(line: &str) -> Option<Mount> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(4);
    let point = unescape(fields.next()?);
    let mount_options = fields.next()?;
    let mut fields = filesystem.split(' ');
    let fs_type = fields.next()?.to_owned();
    let options = format!("{mount_options},{}", fields.nth(1).unwrap_or_default());
    Some(Mount { point: point.into(), fs_type, options })
}

/// Undoes the kernel's `\040` for a space, `\011`, `\012` and `\134`.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::super::testing::Fake;
    use super::*;

    const TABLE: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 27 0:25 / /var/lib ro,nodev shared:7 master:2 - tmpfs tmpfs rw,size=4k
31 30 8:1 / /var/lib rw,noatime - xfs /dev/sda1 rw,prjquota
32 27 8:2 / /with\\040space rw - ext4 /dev/sda2 rw
broken line
";

    fn table() -> Vec<Mount> {
        read(&Fake::new().file("proc/self/mountinfo", TABLE).host()).expect("a table")
    }

    #[test]
    fn optional_fields_and_escapes_are_understood() {
        let mounts = table();
        assert_eq!(mounts.len(), 4);
        assert_eq!(
            (mounts[1].fs_type.as_str(), mounts[1].options.as_str()),
            ("tmpfs", "ro,nodev,rw,size=4k")
        );
        assert_eq!(mounts[3].point, Path::new("/with space"));
    }

    #[test]
    fn the_deepest_and_topmost_mount_holds_a_path() {
        let mounts = table();
        let at = |path: &str| holding(&mounts, Path::new(path)).map(|m| m.fs_type.clone());
        assert_eq!(at("/var/lib/skiff").as_deref(), Some("xfs"));
        assert_eq!(at("/var/library").as_deref(), Some("ext4"));
        assert!(holding(&mounts, Path::new("/var/lib/x")).is_some_and(|m| m.has("prjquota") && !m.has("ro")));
    }

    #[test]
    fn no_table_is_an_error() {
        assert!(read(&Fake::new().host()).is_err());
    }
}
