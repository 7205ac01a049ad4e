//! Commands, given as one word or as a JSON array of words.

use std::str::FromStr;

use super::Invalid;

/// The words of an entrypoint or command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Words(pub(crate) Vec<String>);

impl FromStr for Words {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let words = if text.trim_start().starts_with('[') {
            serde_json::from_str(text)
                .map_err(|e| Invalid::new(format!("not a JSON array of texts, such as [\"a\",\"b\"]: {e}")))?
        } else {
            vec![text.to_owned()]
        };
        match words.first() {
            Some(program) if !program.is_empty() => {}
            _ => return Err(Invalid::new("the first word is missing or empty")),
        }
        // An argument with a NUL byte cannot be given to any program.
        if words.iter().any(|word| word.contains('\0')) {
            return Err(Invalid::new("a word has a NUL character in it"));
        }
        Ok(Self(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Vec<String>, String> {
        text.parse::<Words>().map(|words| words.0).map_err(|e| e.to_string())
    }

    #[test]
    fn a_word_is_one_word_and_an_array_is_many() {
        assert_eq!(words("/usr/bin/app"), Ok(vec!["/usr/bin/app".into()]));
        assert_eq!(words("not split"), Ok(vec!["not split".into()]));
        assert_eq!(words(r#"["python3","-u","a b.py",""]"#).map(|w| w.len()), Ok(4));
    }

    #[test]
    fn what_is_no_command_is_explained() {
        for text in ["", "[]", r#"["","x"]"#] {
            assert_eq!(words(text), Err("the first word is missing or empty".into()), "{text}");
        }
        for text in ["[", "[1]", r#"["a""#, r#"[["a"]]"#] {
            assert!(words(text).is_err_and(|e| e.starts_with("not a JSON array of texts")), "{text}");
        }
        assert!(words(r#"["a\u0000b"]"#).is_err_and(|e| e.contains("NUL")));
    }
}
