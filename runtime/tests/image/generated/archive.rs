//! Archives, as builders write them in their different ways.

use std::collections::{BTreeMap, BTreeSet};

use tar::EntryType;

use super::{Change, Form, Step};

/// One archive in the making.
#[derive(Default)]
pub(super) struct Layer {
    pub(super) archive: Vec<u8>,
    pub(super) late: Vec<u8>,
    /// Every name once in a layer, and whether it is a directory in it.
    pub(super) done: BTreeMap<String, bool>,
    /// Links that a name has led through.
    pub(super) used: BTreeSet<String>,
    pub(super) last_file: Option<String>,
    /// Whether names come twice, and none leads through a link: such a layer is refused.
    pub(super) may_repeat: bool,
}

/// `cap_net_bind_service=ep`, as `setcap` writes it (revision 2, linux/capability.h).
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

impl Layer {
    pub(super) fn add(
        &mut self,
        path: &str,
        kind: EntryType,
        link: &str,
        mode: u32,
        step: &Step,
        data: &[u8],
    ) {
        self.add_at(false, path, kind, link, mode, step, data);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of an entry")]
    pub(super) fn add_at(
        &mut self,
        late: bool,
        path: &str,
        kind: EntryType,
        link: &str,
        mode: u32,
        step: &Step,
        data: &[u8],
    ) {
        let archive = if late { &mut self.late } else { &mut self.archive };
        let is_whiteout = path.contains(".wh.");
        let mut records = Vec::new();
        if step.attribute && !is_whiteout && matches!(kind, EntryType::Regular | EntryType::Directory) {
            records.extend(record("SCHILY.xattr.user.note", b"a value"));
            if kind == EntryType::Regular {
                records.extend(record("SCHILY.xattr.security.capability", CAPABILITY));
            }
        }
        let path = format!("{}{path}", step.form.prefix);
        entry(archive, &path, kind, link, mode, step, &records, data);
    }

    /// In the form of PAX version 1.0: the map is before the data.
    pub(super) fn sparse(&mut self, path: &str, holes: u8, step: &Step) {
        const HOLE: usize = 5000;
        let runs: Vec<(usize, usize)> =
            (0..usize::from(holes)).map(|n| (n * HOLE + HOLE, n * 10 + 1)).collect();
        let size = usize::from(holes) * HOLE * 2 + 777;
        let mut data = format!("{}\n", runs.len());
        runs.iter().for_each(|(offset, length)| data += &format!("{offset}\n{length}\n"));
        let mut data = data.into_bytes();
        data.resize(data.len().next_multiple_of(512), 0);
        runs.iter().for_each(|(_, length)| data.extend(vec![b's'; *length]));
        let mut records = Vec::new();
        for (key, value) in [("major", "1"), ("minor", "0"), ("name", path), ("realsize", &size.to_string())]
        {
            records.extend(record(&format!("GNU.sparse.{key}"), value.as_bytes()));
        }
        let step = Step { form: Form { pax: true, prefix: "", ..step.form }, ..step.clone() };
        entry(&mut self.archive, "GNUSparseFile.0/x", EntryType::Regular, "", 0o604, &step, &records, &data);
    }
}

#[expect(clippy::too_many_arguments, reason = "the fields of an entry")]
fn entry(
    archive: &mut Vec<u8>,
    path: &str,
    kind: EntryType,
    link: &str,
    mode: u32,
    step: &Step,
    records: &[u8],
    data: &[u8],
) {
    let mut header = if step.form.pax { tar::Header::new_ustar() } else { tar::Header::new_gnu() };
    if step.form.pax {
        let mut all = record("mtime", format!("{}.{:09}", step.mtime, step.nanos).as_bytes());
        all.extend(record("uid", step.owner.to_string().as_bytes()));
        all.extend(record("gid", step.group.to_string().as_bytes()));
        // A name in the records counts, whatever the header says.
        if path.len() > 90 {
            all.extend(record("path", path.as_bytes()));
        }
        if link.len() > 90 {
            all.extend(record("linkpath", link.as_bytes()));
        }
        all.extend(records);
        block(archive, tar::Header::new_ustar(), EntryType::XHeader, "pax", &all);
    } else {
        header.set_uid(step.owner);
        header.set_gid(step.group);
        for (kind, long) in [(EntryType::GNULongName, path), (EntryType::GNULongLink, link)] {
            if long.len() > 90 {
                block(
                    archive,
                    tar::Header::new_gnu(),
                    kind,
                    "././@LongLink",
                    &[long.as_bytes(), b"\0"].concat(),
                );
            }
        }
    }
    header.set_mode(mode);
    header.set_mtime(step.mtime as u64);
    if matches!(kind, EntryType::Char | EntryType::Block) {
        let (major, minor) = if kind == EntryType::Char { (1, 3) } else { (259, step.owner as u32 % 70_000) };
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
    }
    let short = |text: &str| text.as_bytes()[..text.len().min(90)].to_vec();
    header.as_mut_bytes()[157..157 + short(link).len()].copy_from_slice(&short(link));
    block(archive, header, kind, std::str::from_utf8(&short(path)).unwrap_or("cut"), data);
}

fn block(archive: &mut Vec<u8>, mut header: tar::Header, kind: EntryType, name: &str, data: &[u8]) {
    header.set_entry_type(kind);
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(data.len() as u64);
    header.set_cksum();
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest..).find(|n| *n == rest + n.to_string().len()).unwrap();
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// The root directory is in the first layer, or each side makes its own.
pub(super) fn root() -> Vec<u8> {
    let form = Form { pax: true, prefix: "", late: false, twice: false };
    let (path, change) = (Vec::new(), Change::Remove);
    let (owner, group, mtime, nanos) = (0, 0, 1_000_000_000, 0);
    let step = Step { path, change, owner, group, mtime, nanos, attribute: false, form };
    let mut archive = Vec::new();
    entry(&mut archive, "./", EntryType::Directory, "", 0o755, &step, b"", b"");
    archive.resize(archive.len() + 1024, 0);
    archive
}
