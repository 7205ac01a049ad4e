//! The query of a URI, as the routes need it: `a=1&b=/x%20y`.

/// Decoded parameters of a query, in order.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Parses a query; what is not `name=value` has an empty value.
    pub(crate) fn parse(text: Option<&str>) -> Self {
        let pairs = text.unwrap_or_default().split('&').filter(|part| !part.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// A text, or `default`.
    pub(crate) fn text(&self, name: &str, default: &str) -> String {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map_or_else(|| default.to_owned(), |(_, value)| value.clone())
    }

    /// A number, or `default` when it is missing or is none.
    pub(crate) fn number(&self, name: &str, default: u64) -> u64 {
        self.text(name, "").parse().unwrap_or(default)
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'%').then(|| tail.get(..2)).flatten();
        let value = escaped
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(value.unwrap_or(if first == b'+' { b' ' } else { first }));
        rest = if value.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_and_broken_ones_are_kept() {
        let query = Query::parse(Some("dir=%2ftmp+x&n=7&odd=%zz&end=%2"));
        assert_eq!(query.text("dir", ""), "/tmp x");
        assert_eq!(query.number("n", 0), 7);
        assert_eq!(query.text("odd", ""), "%zz");
        assert_eq!(query.text("end", ""), "%2");
        assert_eq!(query.number("odd", 5), 5);
    }
}
