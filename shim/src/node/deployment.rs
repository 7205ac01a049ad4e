//! What is deployed: a function's file and how many instances it may have.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::function::file::{FileOptions, FunctionFile, Language};
use crate::pool::PoolOptions;
use crate::{Error, ErrorKind, Result};

/// Instances of a function at most.
const MAX_INSTANCES: u32 = 1000;

/// How many instances a function has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scaling {
    /// Instances at once, 1 to 1000.
    pub max_instances: u32,
    /// Instances that are there without a call, at most `max_instances`.
    pub provisioned: u32,
    /// Seconds that an instance may be without a call before it is stopped; at least 1.
    pub idle_s: u64,
    /// Memory of all its instances together in MiB, at least that of one; `None` bounds their number only.
    pub max_memory_mib: Option<u32>,
}

impl Default for Scaling {
    /// Ten instances, none of them provisioned, each for five idle minutes.
    fn default() -> Self {
        Self { max_instances: 10, provisioned: 0, idle_s: 300, max_memory_mib: None }
    }
}

impl Scaling {
    /// Of a function whose instances have so much memory each.
    pub(super) fn pool(self, memory_mib: u32) -> PoolOptions {
        PoolOptions {
            max_instances: usize::try_from(self.instances(memory_mib)).unwrap_or(usize::MAX),
            provisioned: usize::try_from(self.provisioned).unwrap_or(usize::MAX),
            idle: Some(Duration::from_secs(self.idle_s)),
            ..PoolOptions::default()
        }
    }

    /// Instances at most.
    fn instances(self, memory_mib: u32) -> u32 {
        let by_memory = self.max_memory_mib.and_then(|most| most.checked_div(memory_mib)).unwrap_or(u32::MAX);
        self.max_instances.min(by_memory)
    }

    fn faults(self, memory_mib: u32) -> Vec<String> {
        let mut faults = Vec::new();
        if let Some(most) = self.max_memory_mib.filter(|most| *most < memory_mib) {
            faults.push(format!(
                "max_memory_mib {most} must be at least the memory of an instance ({memory_mib})"
            ));
        } else if self.provisioned > self.instances(memory_mib) && self.provisioned <= self.max_instances {
            let (provisioned, instances) = (self.provisioned, self.instances(memory_mib));
            faults.push(format!(
                "provisioned {provisioned} must be at most what max_memory_mib lets it have ({instances})"
            ));
        }
        if !(1..=MAX_INSTANCES).contains(&self.max_instances) {
            faults.push(format!("max_instances {} must be 1 to {MAX_INSTANCES}", self.max_instances));
        }
        if self.provisioned > self.max_instances {
            let (provisioned, max) = (self.provisioned, self.max_instances);
            faults.push(format!("provisioned {provisioned} must be at most max_instances ({max})"));
        }
        if self.idle_s == 0 {
            faults.push("idle_s 0 must be at least 1".to_owned());
        }
        faults
    }
}

/// A function to deploy.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    /// The text of its file; see [`function::file`](crate::function::file).
    pub file: String,
    /// The file's name: its end tells the language, and errors name it.
    pub name: String,
    /// Which of several functions of an `s.yaml`.
    #[serde(default)]
    pub service: Option<String>,
    /// Variables that the file names as `${env(NAME)}`.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    /// How many instances it has.
    #[serde(default)]
    pub scaling: Scaling,
}

impl Deployment {
    /// A function as it is in a file of this name, with the default scaling.
    #[must_use]
    pub fn new(file: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            name: name.into(),
            service: None,
            variables: BTreeMap::new(),
            scaling: Scaling::default(),
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// `InvalidFunction` with all faults.
    pub fn read(&self) -> Result<FunctionFile> {
        let language = Language::of(self.name.as_ref()).ok_or_else(|| {
            let message = format!("{} is no function file", self.name);
            Error::new(ErrorKind::InvalidFunction, message)
                .advise("its name must end in .toml, .json or .yaml")
        })?;
        let lookup = |name: &str| self.variables.get(name).cloned();
        let options = FileOptions { service: self.service.as_deref(), lookup: Some(&lookup) };
        let file = FunctionFile::parse(&self.file, language, &self.name, options)?;
        let faults = self.scaling.faults(file.config.memory_mib);
        if !faults.is_empty() {
            let message = format!("the scaling of {} is wrong: {}", file.config.name, faults.join("; "));
            return Err(Error::new(ErrorKind::InvalidFunction, message).with_faults(faults));
        }
        Ok(file)
    }
}

/// Files and variables may hold what is nobody's business.
impl std::fmt::Debug for Deployment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deployment")
            .field("name", &self.name)
            .field("service", &self.service)
            .field("variables", &self.variables.keys())
            .field("scaling", &self.scaling)
            .finish_non_exhaustive()
    }
}
