//! A group of users.

use std::str::FromStr;

/// The number of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group(pub(crate) u32);

impl FromStr for Group {
    type Err = String;

    /// A number, or a name of `/etc/group`: one of a directory service has to be given by its number.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(number) = text.parse() {
            return Ok(Self(number));
        }
        let file =
            std::fs::read_to_string("/etc/group").map_err(|e| format!("cannot read /etc/group: {e}"))?;
        named(text, &file).map(Self).ok_or_else(|| format!("/etc/group has no group {text}"))
    }
}

/// The number in the line of a name (group(5)).
fn named(name: &str, file: &str) -> Option<u32> {
    let mut lines = file.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.first() == Some(&name)).and_then(|fields| fields.get(2)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_a_number_or_a_name() {
        assert_eq!("27".parse(), Ok(Group(27)));
        assert_eq!("root".parse(), Ok(Group(0)));
        let error = "no-such-group".parse::<Group>().expect_err("none");
        assert!(error.contains("no-such-group"), "{error}");
    }

    #[test]
    fn names_are_whole() {
        let file = "root:x:0:\nskiff-dev:x:998:ann\nskiff:x:999:ann,bob\nbad:x:no:\n";
        assert_eq!(named("skiff", file), Some(999));
        assert_eq!((named("skif", file), named("bad", file), named("x", file)), (None, None, None));
    }
}
