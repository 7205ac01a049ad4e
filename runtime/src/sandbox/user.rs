//! `USER` of an image, or its override, to numbers, by the image's own `/etc/passwd` and
//! `/etc/group`. The rules are Docker's.

use crate::rootfs::path::Root;
use crate::{Error, ErrorKind, Result};

/// Highest user or group id: above it, signed and unsigned readings of the number differ
/// (CVE-2024-40635).
const MAX_ID: u32 = i32::MAX as u32;
/// Supplementary groups taken from `/etc/group` (the kernel's limit is 65,536).
const MAX_GROUPS: usize = 1024;

/// Who the command runs as.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

struct PasswdEntry {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// Resolves `text`: empty, `name`, `uid`, `name:group`, `uid:gid` and so on. A name must exist; a
/// number need not.
pub(crate) fn resolve(text: &str, root: &Root) -> Result<User> {
    let refuse = |what: &str, value: &str| {
        Error::new(ErrorKind::UnknownUser, format!("user '{text}': {what} '{value}' is not in the image"))
            .advise("add it to the image, or give numbers: --user UID[:GID]")
    };
    let (user_part, group_part) = match text.split_once(':') {
        Some((_, "")) => return Err(refuse("the empty group", "")),
        Some(("", _)) => return Err(refuse("the empty user", "")),
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let user_part = if user_part.is_empty() { "0" } else { user_part };
    let passwd = root.database("/etc/passwd");
    let entries = || passwd.lines().filter_map(parse_passwd);
    let entry = match entries().find(|e| e.name == user_part) {
        Some(entry) => Some(entry),
        None => {
            let uid = parse_id(user_part).ok_or_else(|| refuse("the user", user_part))?;
            let found = entries().find(|e| e.uid == uid);
            Some(found.unwrap_or(PasswdEntry { name: String::new(), uid, gid: 0, home: "/".into() }))
        }
    };
    let Some(entry) = entry else { return Err(refuse("the user", user_part)) };
    let groups = root.database("/etc/group");
    let (gid, supplementary) = match group_part {
        Some(group) => (resolve_group(group, &groups).ok_or_else(|| refuse("the group", group))?, Vec::new()),
        None => (entry.gid, groups_of(&entry.name, &groups)),
    };
    Ok(User { uid: entry.uid, gid, groups: supplementary, home: entry.home })
}

/// A decimal number without sign, in range.
fn parse_id(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| *id <= MAX_ID)
}

fn parse_passwd(line: &str) -> Option<PasswdEntry> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|n| !n.is_empty())?;
    let uid = parse_id(fields.nth(1)?)?;
    let gid = parse_id(fields.next()?)?;
    let home = fields.nth(1).filter(|h| h.starts_with('/')).unwrap_or("/");
    Some(PasswdEntry { name: name.to_owned(), uid, gid, home: home.to_owned() })
}

fn resolve_group(text: &str, groups: &str) -> Option<u32> {
    let named = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? == text { parse_id(fields.nth(1)?) } else { None }
    });
    named.or_else(|| parse_id(text))
}

fn groups_of(user: &str, groups: &str) -> Vec<u32> {
    if user.is_empty() {
        return Vec::new();
    }
    let member = |line: &str| {
        let mut fields = line.split(':');
        let gid = parse_id(fields.nth(2)?)?;
        fields.next()?.trim_end().split(',').any(|m| m == user).then_some(gid)
    };
    groups.lines().filter_map(member).take(MAX_GROUPS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(dir.path().join("etc")).expect("mkdir");
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1001::/home/app:/bin/sh\nbig:x:4294967296:0::/:\n";
        std::fs::write(dir.path().join("etc/passwd"), passwd).expect("write");
        std::fs::write(dir.path().join("etc/group"), "root:x:0:\napp:x:1001:\nvideo:x:44:x,app\n1234:x:7:\n")
            .expect("write");
        let root = Root::open(dir.path()).expect("open");
        (dir, root)
    }

    #[test]
    fn names_and_numbers() {
        let (_dir, root) = image();
        let user = |text: &str| resolve(text, &root).map(|u| (u.uid, u.gid, u.groups, u.home));
        assert_eq!(user("").expect("root"), (0, 0, vec![], "/root".into()));
        assert_eq!(user("app").expect("name"), (1000, 1001, vec![44], "/home/app".into()));
        assert_eq!(user("1000").expect("known uid"), (1000, 1001, vec![44], "/home/app".into()));
        assert_eq!(user("1500").expect("unknown uid"), (1500, 0, vec![], "/".into()));
        assert_eq!(user("app:video").expect("group"), (1000, 44, vec![], "/home/app".into()));
        assert_eq!(user("app:99").expect("unknown gid"), (1000, 99, vec![], "/home/app".into()));
        assert_eq!(user("app:1234").expect("a group named by digits"), (1000, 7, vec![], "/home/app".into()));
    }

    #[test]
    fn what_is_not_a_user_is_an_error_and_never_root() {
        let (_dir, root) = image();
        for text in [
            "nobody",
            "1:",
            ":1",
            "0x1",
            "-1",
            "+0",
            "4294967296:1",
            "2147483648",
            "big",
            " 0",
            "0 ",
            "app:nogroup",
        ] {
            let error = resolve(text, &root).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::UnknownUser);
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
