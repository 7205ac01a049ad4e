//! Environment variables of the function: `--env` and `--env-file`.
//!
//! Which names and sizes a platform allows is its own rule; here is only the syntax.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::Invalid;

/// Most bytes of an environment file; both platforms allow 4 KB of variables.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// Finds a variable of this process.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The variables of all files, then of all options; of one name the last counts, at its first place.
///
/// # Errors
/// When a file cannot be read, or a line or option is no variable; never shows a value.
pub(crate) fn gather(
    files: &[impl AsRef<Path>],
    options: &[String],
    lookup: Lookup<'_>,
) -> Result<Vec<(String, String)>, Invalid> {
    let mut variables = Vec::new();
    for file in files {
        add_file(&mut variables, file.as_ref(), lookup)?;
    }
    for option in options {
        set(&mut variables, parse(option, lookup)?);
    }
    Ok(variables)
}

fn add_file(variables: &mut Vec<(String, String)>, path: &Path, lookup: Lookup<'_>) -> Result<(), Invalid> {
    let text = read(path).map_err(|why| Invalid::new(format!("{}: {why}", path.display())))?;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let variable = parse(line, lookup)
            .map_err(|e| Invalid::new(format!("{}, line {}: {e}", path.display(), index + 1)))?;
        set(variables, variable);
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(|e| e.to_string())?.take(FILE_BYTES_MAX + 1);
    file.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if file.limit() == 0 {
        return Err(format!("larger than {FILE_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())
}

/// `NAME=VALUE`, the value as it stands; or `NAME`, with the value that this process has.
fn parse(text: &str, lookup: Lookup<'_>) -> Result<(String, String), Invalid> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text.trim_end(), None),
    };
    if name.is_empty() {
        return Err(Invalid::new("a variable without a name: write NAME=VALUE or NAME"));
    }
    if name.contains(char::is_whitespace) {
        return Err(Invalid::new(format!("the variable name `{}` has a space in it", name.escape_debug())));
    }
    let value = match value {
        Some(value) => value,
        None => lookup(name)
            .ok_or_else(|| Invalid::new(format!("{name} is not set here: set it, or write {name}=VALUE")))?
            .into_string()
            .map_err(|_| Invalid::new(format!("the value of {name} is not UTF-8")))?,
    };
    Ok((name.to_owned(), value))
}

fn set(variables: &mut Vec<(String, String)>, (name, value): (String, String)) {
    match variables.iter_mut().find(|(has, _)| *has == name) {
        Some(variable) => variable.1 = value,
        None => variables.push((name, value)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn host(name: &str) -> Option<OsString> {
        match name {
            "HOST" => Some("from host".into()),
            "BINARY" => Some(OsString::from_vec(vec![0xff])),
            _ => None,
        }
    }

    fn options(options: &[&str]) -> Result<Vec<(String, String)>, String> {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        gather(&[] as &[&Path], &options, &host).map_err(|e| e.to_string())
    }

    fn file(text: impl AsRef<[u8]>) -> Result<Vec<(String, String)>, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("env");
        std::fs::write(&path, text).expect("a file");
        let result = gather(&[&path], &["LAST=option".to_owned()], &host);
        result.map_err(|e| e.to_string().replace(&path.display().to_string(), "FILE"))
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.into(), value.into())
    }

    #[test]
    fn values_stand_as_they_are() {
        assert_eq!(
            options(&["A=1", "B=", "C= x=y \"z\"", "HOST"]),
            Ok(vec![pair("A", "1"), pair("B", ""), pair("C", " x=y \"z\""), pair("HOST", "from host")])
        );
    }

    #[test]
    fn the_last_of_one_name_counts() {
        assert_eq!(options(&["A=1", "B=2", "A=3"]), Ok(vec![pair("A", "3"), pair("B", "2")]));
    }

    #[test]
    fn what_is_no_variable_is_explained() {
        assert!(options(&["=x"]).is_err_and(|e| e.contains("without a name")));
        assert!(options(&[""]).is_err_and(|e| e.contains("without a name")));
        assert_eq!(options(&["A B=x"]), Err("the variable name `A B` has a space in it".into()));
        assert_eq!(options(&["NONE"]), Err("NONE is not set here: set it, or write NONE=VALUE".into()));
        assert_eq!(options(&["BINARY"]), Err("the value of BINARY is not UTF-8".into()));
    }

    #[test]
    fn files_have_comments_and_options_win() {
        let text = "# note\n\n  A=1\nLAST=file\r\nHOST\n#B=2\n";
        assert_eq!(file(text), Ok(vec![pair("A", "1"), pair("LAST", "option"), pair("HOST", "from host")]));
    }

    #[test]
    fn faults_of_files_name_file_and_line() {
        assert_eq!(
            file("A=1\nexport B=2\n"),
            Err("FILE, line 2: the variable name `export B` has a space in it".into())
        );
        assert_eq!(file([0xff]), Err("FILE: not UTF-8".into()));
        let large = "x".repeat(FILE_BYTES_MAX as usize + 1);
        assert_eq!(file(large), Err("FILE: larger than 262144 bytes".into()));
        let missing = gather(&["/no/such/file"], &[], &host).expect_err("no file").to_string();
        assert!(missing.starts_with("/no/such/file: No such file"), "{missing}");
    }

    #[test]
    fn an_error_never_shows_a_value() {
        let error = options(&["=secret"]).expect_err("no name");
        assert!(!error.contains("secret"));
    }
}
