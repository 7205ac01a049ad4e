//! Options of the commands about the images that are here.

use clap::{Args, Subcommand, ValueEnum};
use skiff::PullPolicy;

use super::help;
use crate::cli::values::{Age, StoreSize};

/// Options of `skiff images`.
#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    /// Show whole digests.
    #[arg(long)]
    pub(crate) digests: bool,
}

/// Options of `skiff rmi`.
#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// Names, NAME@DIGEST, or digests (6 digits or more).
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

/// Options of `skiff gc`.
#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Remove images too that were not used for this long, such as 12h or 7d.
    #[arg(long, value_name = "AGE")]
    pub(crate) older_than: Option<Age>,
    /// Remove images too, those first that were not used for the longest time, until the layers that
    /// are left have at most this size, such as 20GiB.
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_size: Option<StoreSize>,
    /// Remove all images that are not in use and not pinned.
    #[arg(long)]
    pub(crate) all: bool,
    /// Only tell what would be removed.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// What to do with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// List the images that are here; the same as `skiff images`.
    #[command(after_help = help::IMAGES, after_long_help = help::IMAGES_LONG)]
    Ls(ImagesArgs),
    /// Remove images; the same as `skiff rmi`.
    #[command(after_help = help::RMI, after_long_help = help::RMI_LONG)]
    Rm(RmiArgs),
    /// Bring an image from a directory or archive into the store under a name.
    #[command(after_help = help::IMPORT, after_long_help = help::IMPORT_LONG)]
    Import(ImportArgs),
}

/// Options of `skiff image import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:TAG].
    pub(crate) source: String,
    /// The name to keep it under, [REGISTRY/]REPOSITORY[:TAG]; the source's own text by default.
    pub(crate) name: Option<String>,
}

/// When a registry is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullWhen {
    /// Each time, for what a tag leads to; never for a digest that is here.
    #[default]
    Always,
    /// Only if no image of this name is here.
    Missing,
    /// Never.
    Never,
}

impl From<PullWhen> for PullPolicy {
    fn from(when: PullWhen) -> Self {
        match when {
            PullWhen::Always => Self::Always,
            PullWhen::Missing => Self::Missing,
            PullWhen::Never => Self::Never,
        }
    }
}
