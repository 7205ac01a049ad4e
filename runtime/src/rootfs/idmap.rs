//! Layers whose files belong to other ids in one container than on disk: nothing is copied and
//! nothing is chowned. Runs in the start process.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, statfs};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::mount::make_dir;
use crate::sys::set_idmap;
use crate::{Error, Result};

/// Makes `dir`, mounts each layer below it as `userns` maps it, and gives the places.
///
/// # Errors
/// `Host`, naming the filesystem, where it cannot map ids.
pub(crate) fn map_layers(userns: impl AsFd, layers: &[PathBuf], dir: &Path) -> Result<Vec<PathBuf>> {
    make_dir(dir)?;
    let mapped = layers.iter().enumerate();
    mapped.map(|(number, layer)| map_layer(&userns, layer, dir.join(number.to_string()))).collect()
}

fn map_layer(userns: impl AsFd, layer: &Path, target: PathBuf) -> Result<PathBuf> {
    let failed = |e| Error::host(format!("cannot mount the layer {}", layer.display()), e);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, layer, flags).map_err(failed)?;
    set_idmap(&tree, userns).map_err(|e| {
        Error::host(format!("{} ({}) cannot map ids", layer.display(), filesystem(layer)), e).advise(
            "have the state directory on ext4, XFS or btrfs (Linux 5.19 or newer), or run without --userns",
        )
    })?;
    make_dir(&target)?;
    // Attached, as overlayfs before Linux 6.15 takes no layer that is not.
    move_mount(tree, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(failed)?;
    Ok(target)
}

/// What people call the filesystem that a path is on.
fn filesystem(path: &Path) -> String {
    let known = [
        (0xEF53, "ext4"),
        (0x5846_5342, "xfs"),
        (0x9123_683E, "btrfs"),
        (0x0102_1994, "tmpfs"),
        (0x794C_7630, "overlayfs"),
        (0x6969, "nfs"),
        (0x6573_5546, "fuse"),
        (0x2FC1_2FC1, "zfs"),
        (0xE0F5_E1E2, "erofs"),
    ];
    let magic = statfs(path).map_or(0, |s| s.f_type);
    known
        .into_iter()
        .find(|(number, _)| *number == magic)
        .map_or_else(|| format!("filesystem {magic:#x}"), |(_, name)| name.to_owned())
}
