//! `WWW-Authenticate` (RFC 9110, section 11.6.1).

/// One challenge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// In lower case.
    pub(crate) scheme: String,
    pub(crate) realm: Option<String>,
    pub(crate) service: Option<String>,
    pub(crate) scope: Option<String>,
}

impl Challenge {
    /// `SCHEME NAME="VALUE",NAME=VALUE…`, one challenge per header as all registries send it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let mut challenge = Self { scheme: scheme.to_ascii_lowercase(), ..Self::default() };
        while let Some((name, value, after)) = parameter(rest) {
            match name.to_ascii_lowercase().as_str() {
                "realm" => challenge.realm = Some(value),
                "service" => challenge.service = Some(value),
                "scope" => challenge.scope = Some(value),
                _ => {}
            }
            rest = after;
        }
        (!challenge.scheme.is_empty()).then_some(challenge)
    }
}

fn parameter(text: &str) -> Option<(&str, String, &str)> {
    let (name, rest) = text.trim_start_matches([',', ' ', '\t']).split_once('=')?;
    let rest = rest.trim_start();
    let Some(quoted) = rest.strip_prefix('"') else {
        let end = rest.find([',', ' ']).unwrap_or(rest.len());
        return Some((name.trim(), rest[..end].to_owned(), &rest[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((name.trim(), value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let text = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io", scope="repository:a/b:pull,push""#;
        let read = Challenge::parse(text).expect("valid");
        assert_eq!(read.scheme, "bearer");
        assert_eq!(read.realm.as_deref(), Some("https://auth.docker.io/token"));
        assert_eq!(read.scope.as_deref(), Some("repository:a/b:pull,push"));
        let read = Challenge::parse(r#"BASIC realm="a \"b\" c""#).expect("valid");
        assert_eq!((read.scheme.as_str(), read.realm.as_deref()), ("basic", Some("a \"b\" c")));
        assert_eq!(Challenge::parse("Negotiate").expect("valid").realm, None);
        assert_eq!(Challenge::parse(r#"Bearer realm="open"#).expect("valid").realm, None);
        assert_eq!(Challenge::parse(""), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = Challenge::parse(&text);
        }
    }
}
