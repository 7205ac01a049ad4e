//! The invoke APIs of both vendors, for their SDKs and whatever else calls them.
//!
//! ```text
//! socket ─ route ─ (signature) ─ Functions::find ─ Function::invoke ─ the vendor's answer
//!                                              └── queue ─ Function::invoke … ─ destination
//! ```
//!
//! A request is of the vendor that its path and headers are of; each vendor's part knows its own routes,
//! words and shapes. What runs the functions is behind [`Functions`].

pub mod auth;
mod fc;
mod options;
mod post;
mod queue;
mod scf;
mod states;
mod work;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::BoxStream;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};

pub use auth::AccessKeys;
pub use options::{AsyncOptions, Destination, MAX_RETRIES};
use queue::Queue;

use crate::proxy::body::{self, Body};
use crate::proxy::{Handler, Listener, serve_with};
use crate::{Error, ErrorKind, EventOutcome, FunctionConfig, Instance, InvokeOptions, Result};

/// The longest that a request may take: the longest time limit of a function, and a start.
const LONGEST: Duration = Duration::from_secs(86_400 + 300);

/// Bytes that are read of a body that is not wanted, and for how long.
const MAX_PASSED_OVER: usize = 64 << 20;
const PASS_OVER: Duration = Duration::from_secs(10);

/// Which function a call is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Service (fc 2.0) or namespace (scf); `None` where the API has neither.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Version or alias; `None` when the caller named none.
    pub qualifier: Option<String>,
}

/// Why there is no such function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No such service or namespace.
    Namespace,
    /// No function of that name.
    Function,
    /// It has no such version or alias.
    Qualifier,
}

/// What can be called.
pub trait Functions: Send + Sync + 'static {
    /// The function that a call is for.
    ///
    /// # Errors
    /// Which part of the name is unknown.
    fn find(&self, target: &Target) -> std::result::Result<Arc<dyn Function>, Missing>;

    /// What is kept of a function's log, the oldest lines first: those since a time, or of one request alone.
    ///
    /// # Errors
    /// `NotFound` where no logs are kept.
    fn log(
        &self,
        _target: &Target,
        _since: Option<SystemTime>,
        _request_id: Option<String>,
    ) -> BoxFuture<'_, Result<LogLines>> {
        let none = Error::new(ErrorKind::NotFound, "no logs are kept here");
        async {
            Err(none.advise("read them where `skiff run` writes them, or let a node keep them (skiff serve)"))
        }
        .boxed()
    }
}

/// Lines of a log, in parts of whole lines: each is a JSON object with `time`, `stream`, `line` and, where it is
/// known, `request_id`.
pub type LogLines = BoxStream<'static, std::io::Result<Bytes>>;

/// One function, however many instances it has.
pub trait Function: Send + Sync + 'static {
    /// What it is.
    fn config(&self) -> &FunctionConfig;

    /// Itself as it is configured by now, where that may have changed since it was found.
    fn by_now(&self) -> Option<Arc<dyn Function>> {
        None
    }

    /// How long an invocation may take, the wait for an instance included.
    fn longest(&self) -> Duration {
        self.config().timeout
    }

    /// How many invocations can be worked on at once, by as many instances as it may have: so many of its
    /// asynchronous events are.
    fn places(&self) -> usize {
        usize::try_from(self.config().concurrency).unwrap_or(usize::MAX)
    }

    /// Invokes it with an event. Never fails: every failure is an outcome.
    fn invoke(&self, event: Bytes, options: InvokeOptions) -> BoxFuture<'_, EventOutcome>;

    /// Passes an HTTP request on to it.
    fn forward(
        &self,
        client: Option<SocketAddr>,
        request: Request<Body>,
    ) -> BoxFuture<'static, Response<Body>>;
}

/// One function, called by its name.
pub struct One(Arc<dyn Function>);

impl One {
    /// Serves this function: a [`Pool`](crate::pool::Pool), or an [`Instance`] alone.
    #[must_use]
    pub fn new(function: Arc<dyn Function>) -> Self {
        Self(function)
    }
}

impl std::fmt::Debug for One {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("One").field(&self.0.config().name).finish()
    }
}

impl Functions for One {
    fn find(&self, target: &Target) -> std::result::Result<Arc<dyn Function>, Missing> {
        matches(self.0.config(), target)?;
        Ok(Arc::clone(&self.0))
    }
}

impl Function for Instance {
    fn config(&self) -> &FunctionConfig {
        Self::config(self)
    }

    fn invoke(&self, event: Bytes, options: InvokeOptions) -> BoxFuture<'_, EventOutcome> {
        self.invoke_event_with(event, options).boxed()
    }

    fn forward(
        &self,
        client: Option<SocketAddr>,
        request: Request<Body>,
    ) -> BoxFuture<'static, Response<Body>> {
        self.pass(client, request, None)
    }
}

/// Whether a call is for this function. Names that mean the version that is there are as good as its own:
/// fc `LATEST`, scf `$LATEST` and the alias `$DEFAULT`.
///
/// # Errors
/// The first part that is another's.
pub fn matches(config: &FunctionConfig, target: &Target) -> std::result::Result<(), Missing> {
    if target.namespace.as_ref().is_some_and(|namespace| *namespace != config.namespace) {
        return Err(Missing::Namespace);
    }
    if target.name != config.name {
        return Err(Missing::Function);
    }
    let latest = ["LATEST", "$LATEST", "$DEFAULT"];
    match &target.qualifier {
        Some(name) if *name != config.version && !latest.contains(&name.as_str()) => Err(Missing::Qualifier),
        _ => Ok(()),
    }
}

/// How the API is served.
#[derive(Clone, Debug, Default)]
pub struct ApiOptions {
    /// Keys of the callers; signatures are checked when there are any.
    pub keys: AccessKeys,
    /// How asynchronous events are treated whose functions say nothing else ([`FunctionConfig::asynchronous`]).
    pub asynchronous: AsyncOptions,
}

/// What was taken for later, of all ways by which functions are called that share it.
#[derive(Clone)]
pub struct AsyncCalls(Arc<Queue>);

impl AsyncCalls {
    /// None yet.
    #[must_use]
    pub fn new(options: AsyncOptions) -> Self {
        Self(Arc::new(Queue::new(options)))
    }

    /// Lets those that run end within a grace of 10 s; those that wait are lost, and told. No more are taken.
    pub async fn close(&self) {
        self.0.close().await;
    }
}

impl std::fmt::Debug for AsyncCalls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AsyncCalls").finish_non_exhaustive()
    }
}

/// The invoke APIs of some functions, on one listener or several.
pub struct Api {
    functions: Arc<dyn Functions>,
    keys: AccessKeys,
    queue: Arc<Queue>,
}

impl Api {
    /// Those of these functions.
    #[must_use]
    pub fn new(functions: Arc<dyn Functions>, options: ApiOptions) -> Arc<Self> {
        Self::sharing(functions, options.keys, &AsyncCalls::new(options.asynchronous))
    }

    /// The same with asynchronous calls that others take too.
    #[must_use]
    pub fn sharing(functions: Arc<dyn Functions>, keys: AccessKeys, calls: &AsyncCalls) -> Arc<Self> {
        Arc::new(Self { functions, keys, queue: Arc::clone(&calls.0) })
    }

    /// Those that it takes for later.
    #[must_use]
    pub fn async_calls(&self) -> AsyncCalls {
        AsyncCalls(Arc::clone(&self.queue))
    }

    /// Lets asynchronous events that run end within a grace of 10 s; those that wait are lost, and told.
    pub async fn close(&self) {
        self.queue.close().await;
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("keys", &self.keys).finish_non_exhaustive()
    }
}

/// Serves the invoke APIs on `listener` until `shutdown` resolves; then takes no more connections, and lets
/// requests that run end within a grace of 10 s. Must be called in a tokio runtime.
///
/// # Errors
/// `Listen` when the listener itself fails; broken connections and requests are not errors.
pub async fn serve(listener: Listener, api: Arc<Api>, shutdown: impl Future<Output = ()>) -> Result<()> {
    serve_with(listener, api, shutdown).await
}

/// Serves a function's HTTP requests on `listener` as [`crate::proxy::serve`] does, and takes those for later
/// whose callers ask for it (fc: `X-Fc-Invocation-Type: Async`), to `calls`. Must be called in a tokio runtime.
///
/// # Errors
/// As [`serve`].
pub async fn serve_requests(
    listener: Listener,
    calls: AsyncCalls,
    function: Arc<dyn Function>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    serve_with(listener, Arc::new(Requests { calls, function }), shutdown).await
}

struct Requests {
    calls: AsyncCalls,
    function: Arc<dyn Function>,
}

impl Handler for Requests {
    fn time(&self) -> Duration {
        self.function.longest()
    }

    fn answer(
        self: Arc<Self>,
        client: Option<SocketAddr>,
        request: Request<Incoming>,
    ) -> BoxFuture<'static, Response<Body>> {
        let function = self.function.by_now().unwrap_or_else(|| Arc::clone(&self.function));
        async move { fc::pass(&self.calls.0, function, client, request).await }.boxed()
    }
}

impl Handler for Api {
    fn time(&self) -> Duration {
        LONGEST
    }

    fn answer(
        self: Arc<Self>,
        client: Option<SocketAddr>,
        request: Request<Incoming>,
    ) -> BoxFuture<'static, Response<Body>> {
        async move {
            match scf::is_meant(&request) {
                true => scf::answer(&self, request).await,
                false => fc::answer(&self, client, request).await,
            }
        }
        .boxed()
    }
}

/// Why a body was not read.
#[derive(Clone, Copy, Debug)]
enum Unread {
    /// It is larger than so many bytes.
    TooLarge(usize),
    /// The client broke off.
    Broken,
}

/// Reads a body to its end; one that is too large is left where it was.
async fn read(body: &mut Option<Incoming>, limit: usize) -> std::result::Result<Bytes, Unread> {
    let whole = body.as_mut().ok_or(Unread::Broken)?;
    if whole.size_hint().lower() > limit as u64 {
        return Err(Unread::TooLarge(limit));
    }
    match Limited::new(whole, limit).collect().await {
        Ok(all) => {
            *body = None;
            Ok(all.to_bytes())
        }
        Err(error) if error.is::<LengthLimitError>() => Err(Unread::TooLarge(limit)),
        Err(_) => Err(Unread::Broken),
    }
}

/// Reads the rest of a body that is not wanted, within bounds: many clients read no answer before they have
/// sent all.
async fn pass_over(body: Option<Incoming>) {
    let Some(mut body) = body else { return };
    let mut left = MAX_PASSED_OVER;
    let all = async {
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    let _ = tokio::time::timeout(PASS_OVER, all).await;
}

fn response(status: StatusCode, headers: HeaderMap, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(body::full(bytes));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
