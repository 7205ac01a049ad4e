//! Whole texts, in which some parts are not known before.

/// Checks that a text is this pattern and nothing else. In the pattern `<n>` is a number, `<mb>` one with two
/// decimals, `<time>` a time with nanoseconds, `<ip>` an address of version 4, `<id>` an id of fc.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn assert_like(text: &str, pattern: &str) {
    assert!(is_like(text, pattern), "not as expected:\n {text:?}\n {pattern:?}");
}

/// As [`assert_like`], for one of several texts.
#[must_use]
pub fn is_like(text: &str, pattern: &str) -> bool {
    let Some((literal, rest)) = pattern.split_once('<') else { return text == pattern };
    let Some(text) = text.strip_prefix(literal) else { return false };
    let Some((kind, rest)) = rest.split_once('>') else { return false };
    (1..=text.len())
        .rev()
        .filter(|end| text.is_char_boundary(*end) && is_a(kind, &text[..*end]))
        .any(|end| is_like(&text[end..], rest))
}

fn is_a(kind: &str, text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let of = |separator: char, lengths: &[usize], alphabet: fn(u8) -> bool| {
        let parts: Vec<&str> = text.split(separator).collect();
        parts.len() == lengths.len()
            && parts
                .iter()
                .zip(lengths)
                .all(|(part, length)| part.len() == *length && part.bytes().all(alphabet))
    };
    match kind {
        "n" => digits(text),
        "mb" => {
            text.split_once('.').is_some_and(|(whole, part)| digits(whole) && digits(part) && part.len() == 2)
        }
        "ip" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "id" => of('-', &[1, 8, 8, 12], |byte| byte.is_ascii_hexdigit()),
        "time" => {
            let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
            shape == "0000-00-00T00:00:00.000000000Z"
        }
        other => panic!("unknown kind <{other}>"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_the_whole_text() {
        let pattern = "took <n>ms at <time>, <mb>MB of <ip>:<n>";
        assert!(is_like("took 12ms at 2019-11-29T09:53:30.859837462Z, 9.20MB of 21.0.3.4:9000", pattern));
        for text in [
            "took ms at 2019-11-29T09:53:30.859837462Z, 9.20MB of 21.0.3.4:9000",
            "took 12ms at 2019-11-29T09:53:30Z, 9.20MB of 21.0.3.4:9000",
            "took 12ms at 2019-11-29T09:53:30.859837462Z, 9.2MB of 21.0.3.4:9000",
            "took 12ms at 2019-11-29T09:53:30.859837462Z, 9.20MB of 21.0.3.4:9000 ",
        ] {
            assert!(!is_like(text, pattern), "{text}");
        }
        assert!(is_like("1-67a59f35-150c1267-f381ba1c085c", "<id>") && !is_like("1-67a59f35", "<id>"));
    }
}
