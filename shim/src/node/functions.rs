//! What the invoke APIs see of a node.

use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::StreamExt as _;

use super::deployed::{Call, Deployed};
use super::{LogQuery, Node};
use crate::Result;
use crate::api::{Function, Functions, LogLines, Missing, Target};

/// The invoke APIs find functions here.
impl Functions for Node {
    fn find(&self, target: &Target) -> std::result::Result<Arc<dyn Function>, Missing> {
        let table = self.table();
        let named: Vec<&Arc<Deployed>> = table
            .iter()
            .filter(|(key, _)| target.namespace.as_ref().is_none_or(|namespace| key.0 == *namespace))
            .map(|(_, deployed)| deployed)
            .collect();
        if named.is_empty() && target.namespace.is_some() {
            return Err(Missing::Namespace);
        }
        let mut missing = Missing::Function;
        for deployed in named {
            match crate::api::matches(&deployed.config(), target) {
                Ok(()) => return Ok(Arc::new(Call::of(deployed))),
                Err(Missing::Qualifier) => missing = Missing::Qualifier,
                Err(_) => {}
            }
        }
        Err(missing)
    }

    fn log(
        &self,
        target: &Target,
        since: Option<SystemTime>,
        request_id: Option<String>,
    ) -> BoxFuture<'_, Result<LogLines>> {
        let (namespace, name) = (target.namespace.clone(), target.name.clone());
        async move {
            let query = LogQuery { since, request_id, follow: false };
            Ok(self.logs(namespace.as_deref(), &name, query).await?.boxed())
        }
        .boxed()
    }
}
