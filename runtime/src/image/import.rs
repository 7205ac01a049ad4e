//! Bringing an image from a file or directory into the store under a name of a registry.

use std::sync::Arc;

use super::source::{Reference, Source};
use super::store::Store;
use super::{Image, PullOptions};
use crate::{Error, ErrorKind, Result};

impl Store {
    /// Keeps the image of a directory or archive under a name, as if it had been pulled under it:
    /// with [`PullPolicy::Missing`](super::PullPolicy) or `Never` no registry is asked for it. Without
    /// a name it is kept under the source's own text. Dropping the future stops it.
    ///
    /// # Errors
    /// `InvalidArgument` for a source that is a registry, or a name with a digest; as
    /// [`Store::pull`] for the rest.
    pub async fn import(
        self: &Arc<Self>,
        source: &Source,
        name: Option<&Reference>,
        options: &PullOptions,
    ) -> Result<Image> {
        if let Source::Registry(reference) = source {
            let message = format!("{reference} is in a registry and is not imported");
            return Err(Error::new(ErrorKind::InvalidArgument, message).advise(
                "use skiff pull, or write \
                oci:DIR, oci-archive:FILE or docker-archive:FILE",
            ));
        }
        if let Some(name) = name.filter(|name| name.digest().is_some()) {
            let message = format!("an image cannot be given the name {name}, which has a digest");
            return Err(Error::new(ErrorKind::InvalidArgument, message).advise("give it a tag"));
        }
        let name = name.map_or_else(|| source.name(), ToString::to_string);
        self.fetch_as(source, name, options).await
    }
}
