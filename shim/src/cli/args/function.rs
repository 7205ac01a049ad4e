//! The function: its platform, command, limits and identity.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use skiff::function::name_from_image;
use skiff::platform::{self, Platform};
use skiff::{CredentialEndpoint, Credentials, EndpointToken, FunctionConfig, RoleSource, Secret};

use super::lifecycle::LifecycleArgs;
use super::source::variable;
use crate::cli::failure::Failure;
use crate::cli::values::{Cpus, DiskSize, Memory, Time, Words, env};

/// Temporary credentials of the role that the function runs as: id, secret and token.
const ROLE: [&str; 3] =
    ["SKIFF_FUNCTION_ACCESS_KEY_ID", "SKIFF_FUNCTION_ACCESS_KEY_SECRET", "SKIFF_FUNCTION_SECURITY_TOKEN"];

/// The function as it is written; what is not given is the platform's or the image's.
#[derive(Debug, Args)]
pub(crate) struct FunctionArgs {
    /// Whose contract the function runs under: fc (API 3.0), fc2 (API 2.0) or scf [default: fc].
    #[arg(long, help_heading = "Function", env = "SKIFF_PLATFORM", hide_env_values = true)]
    #[arg(value_parser = platform_parser(), hide_possible_values = true)]
    pub(crate) platform: Option<&'static dyn Platform>,
    /// Its name [default: the image's own name].
    #[arg(long, help_heading = "Function")]
    pub(crate) name: Option<String>,
    /// Replace the image's entrypoint and cmd: one word, or a JSON array of words.
    #[arg(long, value_name = "WORDS", help_heading = "Function")]
    pub(crate) entrypoint: Option<Words>,
    /// Replace the image's cmd: one word, or a JSON array of words (or give it after --).
    #[arg(long, value_name = "WORDS", help_heading = "Function", conflicts_with = "args")]
    pub(crate) command: Option<Words>,
    /// Set a variable, or pass on this one of Skiff's own (may be given again).
    #[arg(long, short, value_name = "NAME[=VALUE]", help_heading = "Function")]
    pub(crate) env: Vec<String>,
    /// Read variables from a file, one NAME=VALUE in a line, # for comments (may be given again).
    #[arg(long, value_name = "FILE", help_heading = "Function")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Replace the image's user: name or id, and :group if wanted.
    #[arg(long, value_name = "USER[:GROUP]", help_heading = "Function")]
    pub(crate) user: Option<String>,
    /// Run it in a user namespace: its root and all its users are high ids of the host that nobody
    /// else has. The image is mapped, not copied or changed.
    #[arg(long, help_heading = "Function")]
    pub(crate) userns: bool,
    /// Replace the image's working directory.
    #[arg(long, value_name = "DIR", help_heading = "Function")]
    pub(crate) workdir: Option<String>,
    /// Where the function's server listens [default: 9000].
    #[arg(long, help_heading = "Function", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,

    /// Memory, such as 512MiB [default: the platform's].
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub(crate) memory: Option<Memory>,
    /// Cores, such as 0.5 [default: no limit].
    #[arg(long, value_name = "CORES", help_heading = "Limits")]
    pub(crate) cpus: Option<Cpus>,
    /// Processes and threads [default: the platform's].
    #[arg(long, value_name = "COUNT", help_heading = "Limits", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) pids: Option<u32>,
    /// What holds written bytes: a directory with a quota or a loop device (both cost disk), a
    /// tmpfs (the function's memory), or the first of these that the host has [default: auto].
    #[arg(long, value_name = "KIND", help_heading = "Limits", value_enum)]
    pub(crate) writable: Option<Writable>,
    /// Room for all that is written outside /tmp [default: 512MiB].
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub(crate) writable_size: Option<DiskSize>,
    /// Files, directories and links that fit outside /tmp [default: one for each 16 KiB].
    #[arg(long, value_name = "COUNT", help_heading = "Limits", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) writable_inodes: Option<u64>,
    /// Room in /tmp [default: 512MiB].
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub(crate) tmp_size: Option<DiskSize>,
    /// Files, directories and links that fit into /tmp [default: one for each 16 KiB].
    #[arg(long, value_name = "COUNT", help_heading = "Limits", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) tmp_inodes: Option<u64>,
    /// Nothing can be written outside /tmp.
    #[arg(long, help_heading = "Limits")]
    pub(crate) read_only: bool,
    /// Image acceleration: record what the first start of the image touches, and read that ahead
    /// when a later start meets a cold page cache.
    #[arg(long, help_heading = "Limits")]
    pub(crate) accelerate: bool,
    /// Time for one invocation, such as 30s [default: the platform's].
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    pub(crate) timeout: Option<Time>,
    /// Time that a WebSocket may be idle (scf) [default: the platform's].
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    pub(crate) websocket_idle: Option<Time>,
    /// Time until the server listens [default: the platform's].
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    pub(crate) start_timeout: Option<Time>,
    /// Time between SIGTERM and SIGKILL at the end [default: 300ms].
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    pub(crate) stop_timeout: Option<Time>,

    /// Region that the function sees.
    #[arg(long, help_heading = "Identity")]
    pub(crate) region: Option<String>,
    /// Account that the function sees: fc's account id, scf's UIN.
    #[arg(long, value_name = "ID", help_heading = "Identity")]
    pub(crate) account_id: Option<String>,
    /// Application id that the function sees (scf's APPID).
    #[arg(long, value_name = "ID", help_heading = "Identity")]
    pub(crate) app_id: Option<String>,
    /// Namespace (scf) or service (fc2) that the function sees.
    #[arg(long, help_heading = "Identity")]
    pub(crate) namespace: Option<String>,
    /// Version or alias that the function sees.
    #[arg(long, value_name = "VERSION", help_heading = "Identity")]
    pub(crate) qualifier: Option<String>,
    /// Handler name that the function sees (fc).
    #[arg(long, help_heading = "Identity")]
    pub(crate) handler: Option<String>,

    /// Take the temporary credentials of the function's role from this JSON file, again before they
    /// expire.
    #[arg(long, value_name = "FILE", help_heading = "Identity", conflicts_with = "role_url")]
    pub(crate) role_file: Option<PathBuf>,
    /// Take them from a service: https://…, http://127.0.0.1…, or unix:/PATH.
    #[arg(long, value_name = "URL", help_heading = "Identity")]
    pub(crate) role_url: Option<String>,
    /// A file with the token that the service is shown.
    #[arg(long, value_name = "FILE", help_heading = "Identity", requires = "role_url")]
    pub(crate) role_token_file: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) lifecycle: LifecycleArgs,
}

/// What holds written bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Writable {
    /// Quota, else loop, else tmpfs: what the host has (see `skiff doctor`).
    Auto,
    /// A directory with a project quota, where the state directory is on XFS or ext4 with prjquota.
    Quota,
    /// A sparse ext4 filesystem on a loop device.
    Loop,
    /// A tmpfs, charged to the function's memory.
    Tmpfs,
}

impl From<Writable> for skiff::Writable {
    fn from(writable: Writable) -> Self {
        match writable {
            Writable::Auto => Self::Auto,
            Writable::Quota => Self::Quota,
            Writable::Loop => Self::Loop,
            Writable::Tmpfs => Self::Tmpfs,
        }
    }
}

pub(super) fn platform_parser() -> impl TypedValueParser<Value = &'static dyn Platform> {
    PossibleValuesParser::new(platform::all().map(Platform::name))
        .try_map(|name| platform::by_name(&name).ok_or("no such platform"))
}

impl FunctionArgs {
    /// The function, checked against its platform's rules: what its file says, and what the options say
    /// instead; `args` are those after `--`.
    pub(crate) fn resolve(
        &self,
        image: &str,
        file: Option<FunctionConfig>,
        args: &[String],
        lookup: impl Fn(&str) -> Option<OsString>,
    ) -> Result<FunctionConfig, Failure> {
        let mut config = self.beginning(image, file)?;
        replace(&mut config.name, self.name.clone());
        let rest = (!args.is_empty()).then(|| args.to_vec());
        if let Some(words) = &self.entrypoint {
            // The file's arguments were for its own.
            (config.entrypoint, config.cmd) = (Some(words.0.clone()), None);
        }
        let given = self.command.clone().map(|words| words.0).or(rest);
        config.cmd = given.or(config.cmd.take());
        for (name, value) in env::gather(&self.env_file, &self.env, &lookup).map_err(Failure::from)? {
            config.env.retain(|(has, _)| *has != name);
            config.env.push((name, value));
        }
        config.user = self.user.clone().or(config.user.take());
        config.userns |= self.userns;
        config.working_dir = self.workdir.clone().or(config.working_dir.take());
        config.port = self.port.or(config.port);
        config.credentials = role_credentials(lookup)?;
        if config.credentials.is_some() || self.role_file.is_some() || self.role_url.is_some() {
            config.role = self.role();
        }
        self.limit(&mut config);
        self.identify(&mut config);
        self.lifecycle.apply(&mut config);
        config.validate()?;
        Ok(config)
    }

    /// What the file says, or a function of the platform.
    fn beginning(&self, image: &str, file: Option<FunctionConfig>) -> Result<FunctionConfig, Failure> {
        let Some(config) = file else {
            let platform = self.platform.unwrap_or_else(platform::fc);
            let name = name_from_image(image, platform.limits().name_chars);
            return Ok(FunctionConfig::new(name, platform));
        };
        match self.platform.map(Platform::name).filter(|name| *name != config.platform.name()) {
            Some(name) => {
                let own = config.platform.name();
                Err(Failure::usage(format!("--platform {name}: the function of the file is one of {own}"))
                    .advise("leave --platform (and SKIFF_PLATFORM) away, or change the file"))
            }
            None => Ok(config),
        }
    }

    fn role(&self) -> Option<RoleSource> {
        let token = self.role_token_file.clone().map(EndpointToken::File);
        let service = |url: &String| RoleSource::Endpoint(CredentialEndpoint { url: url.clone(), token });
        self.role_file.clone().map(RoleSource::File).or_else(|| self.role_url.as_ref().map(service))
    }

    fn limit(&self, config: &mut FunctionConfig) {
        replace(&mut config.memory_mib, self.memory.map(|memory| memory.mib));
        replace(&mut config.cpu_millis, self.cpus.map(|cpus| cpus.millis));
        config.pids = self.pids.or(config.pids);
        replace(&mut config.writable, self.writable.map(Into::into));
        replace(&mut config.writable_bytes, self.writable_size.map(|size| size.0));
        replace(&mut config.writable_inodes, self.writable_inodes);
        replace(&mut config.tmp_bytes, self.tmp_size.map(|size| size.0));
        replace(&mut config.tmp_inodes, self.tmp_inodes);
        config.read_only |= self.read_only;
        config.acceleration |= self.accelerate;
        replace(&mut config.timeout, self.timeout.map(|time| time.0));
        config.websocket_idle = self.websocket_idle.map(|time| time.0).or(config.websocket_idle);
        config.start_deadline = self.start_timeout.map(|time| time.0).or(config.start_deadline);
        replace(&mut config.stop_grace, self.stop_timeout.map(|time| time.0));
    }

    fn identify(&self, config: &mut FunctionConfig) {
        replace(&mut config.region, self.region.clone());
        replace(&mut config.account_id, self.account_id.clone());
        replace(&mut config.app_id, self.app_id.clone());
        replace(&mut config.namespace, self.namespace.clone());
        replace(&mut config.version, self.qualifier.clone());
        replace(&mut config.handler, self.handler.clone());
    }
}

pub(super) fn replace<T>(value: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *value = given;
    }
}

/// The role's credentials, when all three are set. An empty variable is not set.
fn role_credentials(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Option<Credentials>, Failure> {
    let [id, secret, token] = ROLE;
    let values = (variable(&lookup, id)?, variable(&lookup, secret)?, variable(&lookup, token)?);
    match values {
        (None, None, None) => Ok(None),
        (Some(id), Some(secret), Some(token)) => Ok(Some(Credentials {
            access_key_id: Secret::new(id),
            access_key_secret: Secret::new(secret),
            security_token: Secret::new(token),
        })),
        _ => Err(Failure::usage(format!("of {}, some are set and some are not", ROLE.join(", ")))
            .advise("set all three, or none for a function without a role")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Program {
        #[command(flatten)]
        function: FunctionArgs,
        #[arg(long)]
        event: Option<String>,
        #[arg(last = true)]
        args: Vec<String>,
    }

    fn resolve(args: &[&str]) -> Result<FunctionConfig, Failure> {
        use clap::Parser;
        let program = Program::try_parse_from(std::iter::once(&"skiff").chain(args)).expect("arguments");
        program.function.resolve("127.0.0.1:5000/demo/py.v2:1", None, &program.args, |_| None)
    }

    #[test]
    fn what_is_not_given_is_the_platforms() {
        let config = resolve(&["--platform", "scf"]).expect("a function");
        let own = FunctionConfig::new("py-v2", platform::scf());
        assert_eq!(format!("{config:?}"), format!("{own:?}"));
    }

    #[test]
    fn what_is_given_is_taken() {
        let config = resolve(&[
            "--platform=fc",
            "--memory=1GiB",
            "--cpus=0.5",
            "--pids=64",
            "--writable=tmpfs",
            "--writable-size=64MiB",
            "--tmp-size=32MiB",
            "--timeout=30",
            "--start-timeout=10s",
            "--stop-timeout=2s",
            "--name=mine",
            "--region=cn-beijing",
            "--qualifier=prod",
            "--env=A=1",
            "--user=app",
            "--workdir=/srv",
            "--port=8080",
            "--read-only",
            "--accelerate",
            "--userns",
        ])
        .expect("a function");
        assert_eq!((config.memory_mib, config.cpu_millis, config.pids), (1024, 500, Some(64)));
        assert_eq!(config.writable, skiff::Writable::Tmpfs);
        assert_eq!((config.writable_bytes, config.tmp_bytes), (64 << 20, 32 << 20));
        let seconds = std::time::Duration::from_secs;
        assert_eq!((config.timeout, config.start_deadline()), (seconds(30), seconds(10)));
        assert_eq!(config.stop_grace, seconds(2));
        assert_eq!((config.name.as_str(), config.region.as_str()), ("mine", "cn-beijing"));
        assert_eq!(config.version, "prod");
        assert_eq!(config.env, [("A".to_owned(), "1".to_owned())]);
        assert_eq!((config.user.as_deref(), config.working_dir.as_deref()), (Some("app"), Some("/srv")));
        assert!(config.userns && config.read_only && config.acceleration && config.port() == 8080);
    }

    #[test]
    fn the_command_is_the_images_unless_replaced() {
        let words = |args: &[&str]| resolve(args).map(|c| (c.entrypoint, c.cmd)).expect("a function");
        let some = |words: &[&str]| Some(words.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(words(&[]), (None, None));
        assert_eq!(words(&["--", "a", "-b"]), (None, some(&["a", "-b"])));
        assert_eq!(words(&["--command", r#"["a","b"]"#]), (None, some(&["a", "b"])));
        assert_eq!(words(&["--entrypoint", "/bin/x", "--", "y"]), (some(&["/bin/x"]), some(&["y"])));
    }

    #[test]
    fn all_faults_are_told_together_and_once() {
        let failure = resolve(&["--name=1 2", "--memory=100MiB", "--env=FC_X=secret"]).expect_err("faults");
        assert_eq!((failure.exit, failure.faults.len()), (2, 3), "{failure:?}");
        assert!(failure.faults.iter().all(|fault| !failure.message.contains(fault)), "{failure:?}");
        assert!(!format!("{failure:?}").contains("secret"));
    }

    fn credentials(set: &[&str]) -> Result<Option<Credentials>, Failure> {
        role_credentials(|name| set.contains(&name).then(|| OsString::from("value-of-it")))
    }

    #[test]
    fn a_role_has_all_three_credentials_or_none() {
        assert!(credentials(&[]).is_ok_and(|c| c.is_none()));
        assert!(credentials(&ROLE).is_ok_and(|c| c.is_some()));
        let failure = credentials(&ROLE[..2]).expect_err("two of three");
        assert!(failure.message.contains("SKIFF_FUNCTION_SECURITY_TOKEN"), "{failure:?}");
        assert_eq!(failure.exit, 2);
        assert!(!format!("{failure:?}").contains("value-of-it"));
    }
}
