# Filesystems with project quotas, for the tests; sourced.

# quota_filesystems EXT4 XFS: formats two devices or files, mounts them on /srv/ext4 and /srv/xfs, and
# tells the tests where they are.
quota_filesystems() {
    mkdir -p /srv/ext4 /srv/xfs
    if ! mountpoint -q /srv/ext4; then
        mkfs.ext4 -q -F -O quota,project -E quotatype=prjquota,lazy_itable_init=1,nodiscard "$1" || return
        mount -o prjquota "$1" /srv/ext4 || return
    fi
    if ! mountpoint -q /srv/xfs; then
        mkfs.xfs -q -f -K "$2" || return
        mount -o prjquota "$2" /srv/xfs || return
    fi
    export SKIFF_TEST_EXT4_QUOTA=/srv/ext4 SKIFF_TEST_XFS_QUOTA=/srv/xfs
}
