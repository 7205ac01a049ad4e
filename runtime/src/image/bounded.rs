//! Lists and maps of foreign documents, bounded while they are read: a document of a few megabytes can
//! hold a million empty texts, which take ten times its size in memory.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Entries of one list or map. The kernel takes no command or environment of so many words, and no
/// image has so many layers, ports or labels.
pub(super) const MAX_ENTRIES: usize = 16_384;

fn too_many<E: serde::de::Error>() -> E {
    E::custom(format_args!("a list or map has more than {MAX_ENTRIES} entries"))
}

/// A list of at most [`MAX_ENTRIES`].
#[derive(Debug)]
pub(super) struct List<T>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
    type Value = List<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<List<T>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = list.next_element()? {
            if entries.len() == MAX_ENTRIES {
                return Err(too_many());
            }
            entries.push(entry);
        }
        Ok(List(entries))
    }
}

/// A map of texts of at most [`MAX_ENTRIES`]; of a key that comes twice the last counts.
#[derive(Debug)]
pub(super) struct Map<T>(pub(super) BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Map<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MapVisitor(PhantomData))
    }
}

/// Annotations whose keys are defined (OCI image specification, *Annotations*, and containerd's names
/// of images); anything else in such a map is for others.
#[derive(Debug, Default)]
pub(super) struct Annotations(pub(super) BTreeMap<String, String>);

/// What those keys begin with.
const ANNOTATIONS: [&str; 2] = ["org.opencontainers.image.", "io.containerd.image."];

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(AnnotationsVisitor)
    }
}

struct AnnotationsVisitor;

impl<'de> Visitor<'de> for AnnotationsVisitor {
    type Value = Annotations;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if ANNOTATIONS.iter().any(|prefix| key.starts_with(prefix)) {
                entries.insert(key.into_owned(), map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
            if entries.len() > MAX_ENTRIES {
                return Err(too_many());
            }
        }
        Ok(Annotations(entries))
    }
}

struct MapVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for MapVisitor<T> {
    type Value = Map<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Map<T>, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some((key, value)) = map.next_entry()? {
            entries.insert(key, value);
            if entries.len() > MAX_ENTRIES {
                return Err(too_many());
            }
        }
        Ok(Map(entries))
    }
}

/// Reads a list; `null` is an empty one.
pub(super) fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<List<T>>::deserialize(deserializer)?.map_or_else(Vec::new, |list| list.0))
}

/// Reads a map; `null` is an empty one.
pub(super) fn map<'de, D, T>(deserializer: D) -> Result<BTreeMap<String, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Map<T>>::deserialize(deserializer)?.map_or_else(BTreeMap::new, |map| map.0))
}

/// Fails if the document is an object with a key that is one of `known` but for its case: readers
/// written in Go take `Layers` for `layers`, and would see another document than this one.
pub(super) fn refuse_other_case(bytes: &[u8], known: &[&str]) -> Result<(), serde_json::Error> {
    struct Keys<'a>(&'a [&'a str]);

    impl<'de> Visitor<'de> for Keys<'_> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some((key, IgnoredAny)) = map.next_entry::<Cow<'de, str>, IgnoredAny>()? {
                if let Some(known) = self.0.iter().find(|k| k.eq_ignore_ascii_case(&key) && **k != key) {
                    return Err(A::Error::custom(format_args!(
                        "the key {key:?} is {known:?} to some readers"
                    )));
                }
            }
            Ok(())
        }
    }

    serde_json::Deserializer::from_slice(bytes).deserialize_map(Keys(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_maps_end_at_their_bound() {
        let list = |count: usize| format!("[{}]", vec!["1"; count].join(","));
        let read = |text: &str| serde_json::from_str::<List<u8>>(text).map(|list| list.0.len());
        assert_eq!(read(&list(MAX_ENTRIES)).ok(), Some(MAX_ENTRIES));
        let error = read(&list(MAX_ENTRIES + 1)).expect_err("one more").to_string();
        assert!(error.starts_with("a list or map has more than 16384 entries"), "{error}");
        let map = |count: usize| {
            let entries: Vec<_> = (0..count).map(|n| format!("\"{n}\":1")).collect();
            format!("{{{}}}", entries.join(","))
        };
        let read = |text: &str| serde_json::from_str::<Map<u8>>(text).map(|map| map.0.len());
        assert_eq!(read(&map(MAX_ENTRIES)).ok(), Some(MAX_ENTRIES));
        assert!(read(&map(MAX_ENTRIES + 1)).is_err());
    }

    #[test]
    fn only_defined_annotations_are_kept() {
        let text = r#"{"org.opencontainers.image.ref.name":"v1","com.example":"x","vnd.docker":"y"}"#;
        let read: Annotations = serde_json::from_str(text).expect("annotations");
        let keys: Vec<_> = read.0.keys().collect();
        assert_eq!(keys, ["org.opencontainers.image.ref.name"]);
    }

    #[test]
    fn keys_of_another_case_are_refused() {
        let read = |text: &str| refuse_other_case(text.as_bytes(), &["layers", "mediaType"]);
        read(r#"{"layers":[{"Layers":1}],"mediaType":"x","other":{},"Other":{}}"#).expect("fine");
        for bad in [r#"{"Layers":[]}"#, r#"{"layers":[],"LAYERS":[]}"#, r#"{"mediatype":""}"#, "[]", "{"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let error = read(r#"{"Layers":[]}"#).expect_err("refused").to_string();
        assert!(error.starts_with(r#"the key "Layers" is "layers" to some readers"#), "{error}");
    }
}
