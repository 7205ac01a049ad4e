//! A function's name, taken from its image where none is given.

/// The image's own name as a function's: letters, digits, `-` and `_`, a letter first, at most
/// `max` characters. `registry:5000/team/app.v2:1.0` becomes `app-v2`.
#[must_use]
pub fn name_from_image(image: &str, max: usize) -> String {
    let path = match image.split_once(':') {
        Some(("oci", rest)) => rest.rsplit_once(':').map_or(rest, |(dir, _)| dir),
        Some(("docker-archive", rest)) => rest.trim_end_matches(".tar"),
        _ => image.split('@').next().unwrap_or(image),
    };
    let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let last = last.split(':').next().unwrap_or_default();
    let name: String = last.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let name = name.trim_matches('-');
    let name = match name.chars().next() {
        None => "function".to_owned(),
        Some(first) if first.is_ascii_alphabetic() => name.to_owned(),
        Some(_) => format!("f-{name}"),
    };
    let name: String = name.chars().take(max).collect();
    // SCF takes no name that ends with a dash.
    name.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::name_from_image;

    #[test]
    fn names_come_from_every_kind_of_source() {
        for (image, name) in [
            ("debian", "debian"),
            ("127.0.0.1:5000/demo/py:3.11", "py"),
            ("127.0.0.1:5000/demo/py", "py"),
            ("registry.cn-hangzhou.aliyuncs.com/team/app.v2@sha256:00", "app-v2"),
            ("oci:/tmp/images/demo:latest", "demo"),
            ("oci:target/demo", "demo"),
            ("oci:demo/", "demo"),
            ("docker-archive:/tmp/my app.tar", "my-app"),
            ("2048", "f-2048"),
            ("oci:.", "function"),
            ("", "function"),
            ("_x_", "x"),
        ] {
            assert_eq!(name_from_image(image, 60), name, "{image}");
        }
    }

    #[test]
    fn names_are_cut_and_never_end_with_a_dash() {
        assert_eq!(name_from_image(&"a".repeat(100), 60).len(), 60);
        assert_eq!(name_from_image("abc.def", 4), "abc");
    }
}
