//! A function in a file: Skiff's own (TOML or JSON), Serverless Devs' `s.yaml` (components `fc3` and `fc`)
//! and Tencent's function configuration in JSON (the parameters of `CreateFunction`).
//!
//! ```text
//! bytes ─ languages (TOML, JSON, YAML) ─ tree ─ own | devs | tencent ─ FunctionConfig, warnings
//! ```
//!
//! Everything that is wrong is reported at once, each with its line. What the vendors' files have and Skiff
//! does nothing about is named in a warning.

mod affinity;
mod devs;
mod fields;
mod languages;
mod own;
mod tencent;
#[cfg(test)]
mod tests;
mod tree;

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use fields::Report;
use tree::{Node, fatal};

use super::name_from_image;
use crate::platform::Warning;
use crate::{Error, ErrorKind, FunctionConfig, Result};

/// Bytes of a file at most.
const MAX_BYTES: u64 = 256 << 10;

/// A function as a file has it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FunctionFile {
    /// Its image, as [`Source`](crate::Source) takes it, if the file names one.
    pub image: Option<String>,
    /// The function, valid under its platform's rules.
    pub config: FunctionConfig,
    /// What the file has and Skiff does nothing about, and the like.
    pub warnings: Vec<Warning>,
}

/// Finds a variable of the environment.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What reading a file may need besides it.
#[derive(Clone, Copy, Default)]
pub struct FileOptions<'a> {
    /// Which of several functions of an `s.yaml`.
    pub service: Option<&'a str>,
    /// Variables of the environment, for `${env(NAME)}` of an `s.yaml`; none when `None`.
    pub lookup: Option<Lookup<'a>>,
}

impl std::fmt::Debug for FileOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileOptions").field("service", &self.service).finish_non_exhaustive()
    }
}

/// In which language a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// `.toml`
    Toml,
    /// `.json`
    Json,
    /// `.yaml`, `.yml`
    Yaml,
}

impl Language {
    /// By the end of a file's name.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "toml" => Some(Self::Toml),
            "json" => Some(Self::Json),
            "yaml" | "yml" => Some(Self::Yaml),
            _ => None,
        }
    }
}

impl FunctionFile {
    /// Reads a file of at most 256 KiB.
    ///
    /// # Errors
    /// `InvalidFunction` with all faults ([`Error::faults`]); `Runtime(InvalidArgument)` for a file that
    /// cannot be read.
    pub fn read(path: &Path, options: FileOptions<'_>) -> Result<Self> {
        let shown = path.display();
        let refused = |why: String, advice: &'static str| {
            Error::new(ErrorKind::Runtime(skiff_runtime::ErrorKind::InvalidArgument), why).advise(advice)
        };
        let language = Language::of(path).ok_or_else(|| {
            refused(
                format!("{shown} is no file of a known kind"),
                "give it a name in .toml, .json, .yaml or .yml",
            )
        })?;
        let cannot = |error: std::io::Error| {
            refused(format!("cannot read {shown}: {error}"), "give the path of a file that can be read")
        };
        // A FIFO would be waited for.
        let meta = std::fs::metadata(path).map_err(cannot)?;
        if !meta.is_file() {
            return Err(refused(format!("{shown} is not a file"), "give the path of a file"));
        }
        let mut bytes = Vec::new();
        File::open(path).map_err(cannot)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(cannot)?;
        if bytes.len() as u64 > MAX_BYTES {
            let why = format!("{shown} is larger than {MAX_BYTES} bytes");
            return Err(refused(why, "a function file has some kilobytes at most"));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| refused(format!("{shown} is not a text in UTF-8"), "save it as UTF-8"))?;
        Self::parse(&text, language, &shown.to_string(), options)
    }

    /// Reads a text; `what` names it in errors.
    ///
    /// # Errors
    /// As [`FunctionFile::read`].
    pub fn parse(text: &str, language: Language, what: &str, options: FileOptions<'_>) -> Result<Self> {
        if text.len() as u64 > MAX_BYTES {
            return Err(invalid(what, vec![format!("it has more than {MAX_BYTES} bytes")]));
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let node = match language {
            Language::Toml => languages::toml(text),
            Language::Json => languages::json(text),
            Language::Yaml => languages::yaml(text),
        };
        let node = node.map_err(|error| fatal(what, error))?;
        let report = Report::default();
        let read = Kind::of(&node, language).read(&node, &report, options);
        let read = read.map(|(image, mut config)| {
            if config.name.is_empty() {
                let max = config.platform.limits().name_chars;
                config.name = name_from_image(image.as_deref().unwrap_or_default(), max);
            }
            if let Err(error) = config.validate() {
                report.of_rules(error.faults());
            }
            (image, config)
        });
        let (faults, warnings) = report.finish();
        match read {
            Some((image, config)) if faults.is_empty() => Ok(Self { image, config, warnings }),
            _ => Err(invalid(what, faults)),
        }
    }
}

/// Whose a file is, by what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Own,
    /// Serverless Devs.
    Devs,
    Tencent,
}

impl Kind {
    fn of(node: &Node, language: Language) -> Self {
        let has = |path: &[&str]| node.at(path).is_some();
        if language != Language::Toml && (has(&["resources"]) || has(&["services"])) {
            Self::Devs
        } else if language != Language::Toml && (has(&["Code"]) || has(&["FunctionName"])) {
            Self::Tencent
        } else {
            Self::Own
        }
    }

    /// Image and function; `None` when there is a fault without which nothing can be said.
    fn read(
        self,
        node: &Node,
        report: &Report,
        options: FileOptions<'_>,
    ) -> Option<(Option<String>, FunctionConfig)> {
        match self {
            Self::Own => own::read(node, report),
            Self::Devs => devs::read(node, report, options),
            Self::Tencent => tencent::read(node, report),
        }
    }
}

fn invalid(what: &str, faults: Vec<String>) -> Error {
    let count = if faults.len() == 1 { "1 fault".to_owned() } else { format!("{} faults", faults.len()) };
    Error::new(ErrorKind::InvalidFunction, format!("{what} has {count}: {}", faults.join("; ")))
        .advise("correct each of them and try again")
        .with_faults(faults)
}
